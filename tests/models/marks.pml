/*
 * Marks beside a transaction that makes one slot anew, in part on the same host memory: rule T1.
 * memslots/core/update.pyx (update_carry_marks), memslots/dirty/logs.pyx.
 *
 * A guest writes a page and marks it, twice: it finds the slot, writes, sets the slot's bit, all of
 * it as a reader. A writer takes the marks, replaces the slot by another with a log of its own,
 * waits for the readers, carries the marks over and frees the old slot; then it takes the marks
 * again. At the end, when the guest is through, it takes what is left. Whoever takes a mark reads
 * the page then. The guest's stores may be seen late, in order (a store buffer); atomic operations
 * wait for those before them, as a release does.
 *
 * That readers are waited for is readers.pml's claim: here the writer sees who is in.
 *
 * Claims: nobody marks or carries from what was freed; what is taken last with a mark is what was
 * written last (none is lost); no more marks are given than were made (none is given twice).
 *
 * Each of these takes something out, and a claim fails then:
 *   NO_CARRY       marks are not carried over
 *   CARRY_EARLY    they are before the readers are waited for
 *   CARRY_LATE     they are after the old slot is freed
 *   MARK_FIRST     the guest marks before it writes
 *   CARRY_WHOLE    what is carried over takes the place of the new slot's marks
 *   CLEAR_LATE     a mark is cleared when its page has been read, not before
 */

#define WRITES 2
#define OLD 0
#define NEW 1

byte slot;              /* which of the two readers find */
bool marked[2];         /* the page's bit in each one's log */
bool freed[2];
bool in;                /* the guest is in a section */
byte page;              /* what is in memory: the number of the last write that is seen */
byte buffered;          /* a write that is not seen yet; 0: none */
byte made;              /* marks made */
byte given;             /* marks given */
byte seen;              /* what the page had when a mark of it was last taken */
bool guest_done;
bool all_done;

proctype memory() {
end:
    do
    :: atomic { buffered != 0 -> page = buffered; buffered = 0 }
    od
}

proctype guest() {
    byte number, found;
    for (number : 1 .. WRITES) {
        in = true;
        found = slot;
#ifdef MARK_FIRST
        atomic { assert(!freed[found]); marked[found] = true; made++ }
        buffered == 0;
        buffered = number;
#else
        /* A store buffer of one: the one before must be seen by then. */
        buffered == 0;
        buffered = number;
        /* fetch_or, a release */
        buffered == 0;
        atomic { assert(!freed[found]); marked[found] = true; made++ }
#endif
        in = false
    }
    buffered == 0;
    guest_done = true
}

/* By whoever has the lock; from the slot that readers find. */
inline take() {
#ifdef CLEAR_LATE
    got = marked[slot];
#else
    atomic { got = marked[slot]; marked[slot] = false }
#endif
    if
    :: got -> given++; seen = page
    :: else
    fi;
#ifdef CLEAR_LATE
    marked[slot] = false;
#endif
    got = false
}

inline carry() {
    skip;
#ifndef NO_CARRY
    assert(!freed[OLD]);
    got = marked[OLD];
#ifdef CARRY_WHOLE
    marked[NEW] = got;
#else
    if
    :: got -> marked[NEW] = true
    :: else
    fi;
#endif
    got = false
#endif
}

proctype writer() {
    bool got;
    if
    :: take()
    :: skip
    fi;
    slot = NEW;
#ifdef CARRY_EARLY
    carry();
#endif
    /* Whoever is in may have found the old slot; who enters now finds the new one. */
    do
    :: !in -> break
    :: else
    od;
#ifdef CARRY_LATE
    freed[OLD] = true;
    carry();
#else
#ifndef CARRY_EARLY
    carry();
#endif
    freed[OLD] = true;
#endif
    if
    :: take()
    :: skip
    fi;
    guest_done;
    take();
    assert(seen == WRITES);
    assert(given <= made);
    all_done = true
}

init {
    atomic {
        run guest();
        run memory();
        run writer()
    }
}

ltl ends { <> all_done }
