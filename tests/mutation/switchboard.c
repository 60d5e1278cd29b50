/* What the switches of the mutants read, and where they leave a mark: one file for the process and
   all that it starts. MEMSLOTS_SWITCHBOARD names it. Without it no mutant is on. */

#include "switchboard.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static struct switchboard none;
struct switchboard *switchboard = &none;

void switchboard_open(const char *path)
{
    int file = open(path, O_RDWR | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof(none), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        perror(path);
        abort();
    }
    switchboard = mapped;
}

__attribute__((constructor)) static void opened(void)
{
    const char *path = getenv("MEMSLOTS_SWITCHBOARD");
    if (path)
        switchboard_open(path);
}
