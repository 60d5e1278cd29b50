# cython: preliminary_late_includes_cy28=True
# The directive places the C below after the C of core.layout.
"""The gate for Cython code outside: from the Python objects to the structs of memslots.core.

The results are borrowed: keep the Python object alive. Read them between srcu_enter and srcu_leave
on memslots_reader. In a build with a GIL, holding the GIL and running no Python code in between is
enough. Change nothing.
"""

from memslots.core.layout cimport layout_number
from memslots.core.machine cimport machine
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu_reader

cdef extern from *:
    """
    #if !CYTHON_PEP489_MULTI_PHASE_INIT
    #error "memslots looks at a module's struct layouts in multi-phase initialization"
    #endif
    /* ImportError for a module that was compiled with other layouts than the package has. */
    static PyObject *memslots_init_checked(PyModuleDef *definition) {
        PyObject *layout = PyImport_ImportModule("memslots.core.layout");
        PyObject *number = layout ? PyObject_GetAttrString(layout, "NUMBER") : NULL;
        uint64_t running = number ? PyLong_AsUnsignedLongLong(number) : 0;
        Py_XDECREF(number);
        Py_XDECREF(layout);
        if (PyErr_Occurred())
            return NULL;
        if (running != memslots_layout_number()) {
            PyErr_Format(
                PyExc_ImportError,
                "%s was built against a memslots whose structs are laid out in another way than "
                "those of the one that is installed: build it again", definition->m_name);
            return NULL;
        }
        return PyModuleDef_Init(definition);
    }
    /* What the init function of every module that cimports this file calls. */
    #define PyModuleDef_Init memslots_init_checked
    """
    void memslots_init_checked(void *definition)

# Returns the address space that a Memslots (number 0), an AddressSpace or a Vcpu reads. Raises
# TypeError for any other object.
cdef space *memslots_space(object reader) except NULL
# Returns the reader to enter and leave: a Vcpu's own, otherwise the calling thread's.
cdef srcu_reader *memslots_reader(object reader) except NULL
# Returns the write side of a Memslots, a write.writer.Writer. Guest memory uses it. Its
# declarations are not installed, so code outside cannot use it.
cdef object memslots_writer(object vm)
# Returns the machine that all address spaces of the reader's virtual machine share.
cdef machine *memslots_machine(object reader) except NULL
