/*
 * Readers enter and leave without waiting; a writer waits before it frees: memslots/core/srcu.pyx.
 *
 * Two readers and a writer that changes what is published twice. Each has a store buffer: what it
 * stores is seen by others later, in order, and a fence waits until all of it is. The counters are
 * added to by stores of a difference, so that an addition may be seen late too, as on processors
 * whose atomic additions do not order what follows.
 *
 * Claims: no reader has what was freed (the assertion in `reader`), and no wait is endless (`ends`).
 *
 * Each of these takes something out, and a claim fails then:
 *   NO_READER_FENCE     the fence of srcu_enter
 *   NO_FIRST_FENCE      the first fence of srcu_wait
 *   NO_FIRST_DRAIN      the wait for stragglers
 *   NO_SECOND_DRAIN     the wait for those on the old counter
 *   NO_TURN             new readers are not turned over to the other counter: `ends` fails
 * Nothing fails without the second fence of srcu_wait (NO_SECOND_FENCE): the first fence of the next
 * wait does as well, where stores are seen in order. It is there for processors where they are not.
 *
 * SHARED: both readers count on the same line.
 */

#define READERS 2
#define CHANGES 2
#define ROOM 4          /* entries of a store buffer */

#ifdef SHARED
#define LINE 0
#define LINES 1
#else
#define LINE me
#define LINES READERS
#endif

byte published;         /* which version readers find */
bool freed[CHANGES + 1];
byte turn;              /* bit 0 of the turn */
byte inside[2 * LINES]; /* [2 * line + side] */
bool done;              /* the writer is through */

/* A reader's store buffer: which counter, and by how much it changes. */
typedef buffer {
    byte where[ROOM];
    short by[ROOM];
    byte count
}
buffer of_reader[READERS];

/* The writer's: which variable, and its value. */
#define PUBLISHED 0
#define TURN 1
byte what[ROOM];
byte value[ROOM];
byte writes;

inline reader_store(side, difference) {
    d_step {
        assert(of_reader[me].count < ROOM);
        of_reader[me].where[of_reader[me].count] = 2 * LINE + side;
        of_reader[me].by[of_reader[me].count] = difference;
        of_reader[me].count++
    }
}

inline writer_store(variable, new) {
    d_step {
        assert(writes < ROOM);
        what[writes] = variable;
        value[writes] = new;
        writes++
    }
}

/* What each processor does on its own: the oldest of its stores is seen. */
proctype reader_memory(byte me) {
    byte i;
end:
    do
    :: atomic {
        of_reader[me].count > 0 ->
        inside[of_reader[me].where[0]] = inside[of_reader[me].where[0]] + of_reader[me].by[0];
        for (i : 1 .. ROOM - 1) {
            of_reader[me].where[i - 1] = of_reader[me].where[i];
            of_reader[me].by[i - 1] = of_reader[me].by[i]
        }
        of_reader[me].count--;
        of_reader[me].where[of_reader[me].count] = 0;
        of_reader[me].by[of_reader[me].count] = 0;
        i = 0
    }
    od
}

proctype writer_memory() {
    byte i;
end:
    do
    :: atomic {
        writes > 0 ->
        if
        :: what[0] == PUBLISHED -> published = value[0]
        :: what[0] == TURN -> turn = value[0]
        fi;
        for (i : 1 .. ROOM - 1) {
            what[i - 1] = what[i];
            value[i - 1] = value[i]
        }
        writes--;
        what[writes] = 0;
        value[writes] = 0;
        i = 0
    }
    od
}

proctype reader(byte me) {
    byte side, version;
end:
    do
    ::
        /* srcu_enter */
        side = turn;
        reader_store(side, 1);
#ifndef NO_READER_FENCE
        of_reader[me].count == 0;
#endif
        version = published;
        /* At any time until it leaves. */
        assert(!freed[version]);
        assert(!freed[version]);
        /* srcu_leave; a release, so after all that was read */
        reader_store(side, -1);
        version = 0;
        side = 0;
        /* Before it enters again there is room in its buffer. */
        of_reader[me].count < ROOM - 1
    od
}

/* Looks again and again, at one line after the other. */
inline drain(side) {
    for (line : 0 .. LINES - 1) {
        do
        :: inside[2 * line + side] == 0 -> break
        :: else
        od
    }
}

proctype writer() {
    byte change, own_turn, line;
    for (change : 1 .. CHANGES) {
        writer_store(PUBLISHED, change);
        /* srcu_wait */
#ifndef NO_FIRST_FENCE
        writes == 0;
#endif
#ifndef NO_FIRST_DRAIN
        drain(1 - own_turn);
#endif
#ifndef NO_TURN
        own_turn = 1 - own_turn;
        writer_store(TURN, own_turn);
#endif
#ifndef NO_SECOND_FENCE
        writes == 0;
#endif
#ifndef NO_SECOND_DRAIN
#ifdef NO_TURN
        drain(own_turn);
#else
        drain(1 - own_turn);
#endif
#endif
        freed[change - 1] = true
    }
    done = true
}

init {
    byte i;
    atomic {
        for (i : 0 .. READERS - 1) {
            run reader(i);
            run reader_memory(i)
        }
        run writer();
        run writer_memory()
    }
}

ltl ends { <> done }
