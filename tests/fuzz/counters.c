/* Coverage of the extension modules for libFuzzer, from what gcc can do.
 *
 * libFuzzer wants a counter for each place in the code. clang puts them there
 * (-fsanitize-coverage=inline-8bit-counters); gcc knows only a call at each place
 * (-fsanitize-coverage=trace-pc). This library is what is called: it counts by the place that it was
 * called from, in one table for all modules.
 *
 * It is to be preloaded: libFuzzer has a function of the same name, which ends the process.
 */
#define _GNU_SOURCE
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Two calls are further apart than this, on x86 and where instructions are of four bytes: so each
 * has a counter of its own. */
#define GRAIN 4
#define MOST_SEGMENTS 256

/* The executable part of a module; `first` is the counter of its first byte. */
struct segment {
    uintptr_t start;
    uintptr_t size;
    size_t first;
};

/* As libFuzzer has it: an address, and 1 where a function begins (gcc does not tell). */
struct place {
    uintptr_t pc;
    uintptr_t flags;
};

typedef void counters_init(uint8_t *begin, uint8_t *end);
typedef void pcs_init(const uintptr_t *begin, const uintptr_t *end);

static struct segment segments[MOST_SEGMENTS]; /* by address */
static size_t nsegments;                       /* 0 until all is in place: nothing is counted */
static uint8_t *counters;

/* Where the segments are gathered, in the order in which the modules were loaded: so a counter means
 * the same in every process that imports the same modules. */
struct search {
    const char *directory;
    size_t count;
    size_t ncounters;
};

static int take_module(struct dl_phdr_info *info, size_t size, void *data)
{
    struct search *search = data;

    (void)size;
    if (info->dlpi_name == NULL ||
        strncmp(info->dlpi_name, search->directory, strlen(search->directory)) != 0)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_LOAD || !(header->p_flags & PF_X))
            continue;
        if (search->count == MOST_SEGMENTS)
            return -1;
        struct segment *segment = &segments[search->count++];
        segment->start = info->dlpi_addr + header->p_vaddr;
        segment->size = header->p_memsz;
        segment->first = search->ncounters;
        search->ncounters += header->p_memsz / GRAIN + 1;
    }
    return 0;
}

static int by_start(const void *left, const void *right)
{
    uintptr_t a = ((const struct segment *)left)->start;
    uintptr_t b = ((const struct segment *)right)->start;

    return a < b ? -1 : a > b;
}

/* Begins to count in the modules that are loaded from `directory`, and tells libFuzzer of the
 * counters, by its two functions. Gives how many there are, or -1: no memory, or too many modules. */
long memslots_counters_start(
    const char *directory, counters_init *tell_counters, pcs_init *tell_pcs)
{
    struct search search = { directory, 0, 0 };
    struct place *places;

    if (nsegments != 0 || dl_iterate_phdr(take_module, &search) != 0)
        return -1;
    if (search.count == 0)
        return 0;
    counters = calloc(search.ncounters, 1);
    places = calloc(search.ncounters, sizeof(*places));
    if (counters == NULL || places == NULL)
        return -1;
    for (size_t i = 0; i < search.count; i++)
        for (size_t n = 0; n <= segments[i].size / GRAIN; n++)
            places[segments[i].first + n].pc = segments[i].start + n * GRAIN;
    qsort(segments, search.count, sizeof(segments[0]), by_start);
    tell_counters(counters, counters + search.ncounters);
    tell_pcs((const uintptr_t *)places, (const uintptr_t *)(places + search.ncounters));
    nsegments = search.count;
    return (long)search.ncounters;
}

void __sanitizer_cov_trace_pc(void)
{
    static size_t last; /* most calls are of the module that the one before was of */
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    size_t low, high;
    uint8_t *counter;

    if (nsegments == 0)
        return;
    if (pc - segments[last].start >= segments[last].size) {
        low = 0;
        high = nsegments;
        while (low + 1 < high) {
            size_t middle = (low + high) / 2;
            if (segments[middle].start <= pc)
                low = middle;
            else
                high = middle;
        }
        if (pc - segments[low].start >= segments[low].size)
            return; /* a module that was loaded later */
        last = low;
    }
    counter = &counters[segments[last].first + (pc - segments[last].start) / GRAIN];
    if (++*counter == 0)
        *counter = 1; /* 256 times are not never */
}

/* gcc tells of compared floating-point numbers, too; libFuzzer takes none. */
void __sanitizer_cov_trace_cmpf(float left, float right)
{
    (void)left;
    (void)right;
}

void __sanitizer_cov_trace_cmpd(double left, double right)
{
    (void)left;
    (void)right;
}
