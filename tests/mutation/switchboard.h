/* Which mutant a process runs, and which switches it came by. */

struct switchboard {
    int chosen;                 /* the number of the mutant that is on; 0: none */
    unsigned char reached[MUTANTS]; /* 1: the switch of this mutant was asked */
};

#pragma GCC visibility push(default)
extern struct switchboard *switchboard;
#pragma GCC visibility pop

static inline int mutant(int number)
{
    switchboard->reached[number] = 1;
    return switchboard->chosen == number;
}
