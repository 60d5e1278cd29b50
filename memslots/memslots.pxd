# cython: preliminary_late_includes_cy28=True
# So that the C below comes after core.layout's.
"""The gate for Cython code outside: from the Python objects to the structs of memslots.core.

What these give is borrowed: keep the object. Read between srcu_enter and srcu_leave on
memslots_reader, or, where there is a GIL, with it held and no Python code run in between; change
nothing.
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

# The address space that a Memslots (number 0), an AddressSpace or a Vcpu reads. TypeError for
# anything else.
cdef space *memslots_space(object reader) except NULL
# Where to enter and leave while reading it: a Vcpu's own reader, otherwise the calling thread's.
cdef srcu_reader *memslots_reader(object reader) except NULL
# The write side of a Memslots, a write.writer.Writer: for guest memory. Its declarations are not
# installed, so code outside has no use of it.
cdef object memslots_writer(object vm)
# What the address spaces of its virtual machine share.
cdef machine *memslots_machine(object reader) except NULL
