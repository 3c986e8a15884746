/*
 * The engines' own memory, so that nobody registers it: a scan that froze the records it is about
 * to change would wait for itself.  Kept as a list of ranges in memory of its own, changed by
 * single stores, so that a fork at any moment leaves the child a usable one.
 */
#include "os/own_memory.h"

#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "ksmpy.h"
#include "os/unhooked.h"

#define SLOTS 1024 /* in the first table; each further one has twice as many */
#define TABLES 16

#define SPARE 1 /* a bit of an end: the last OS_SPARE bytes before it are spare */

struct slot {
    _Atomic uintptr_t start; /* 0: free; 1: about to be filled */
    _Atomic uintptr_t end;   /* and SPARE */
};

static uintptr_t end_of(struct slot *slot)
{
    return atomic_load(&slot->end) & ~(uintptr_t)SPARE;
}

static struct slot first[SLOTS];
static _Atomic(struct slot *) tables[TABLES] = {first};

static size_t slots_in(int table)
{
    return (size_t)SLOTS << table;
}

/* The table of that number, which is made first if asked; NULL: there is none, or no memory. */
static struct slot *table_at(int number, bool make)
{
    struct slot *table = atomic_load(&tables[number]);
    if (table || !make)
        return table;
    size_t bytes = slots_in(number) * sizeof *table;
    void *fresh = os_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED)
        return NULL;
    if (atomic_compare_exchange_strong(&tables[number], &table, fresh))
        return fresh;
    os_munmap(fresh, bytes); /* another thread was faster */
    return table;
}

/* end: with SPARE, if it is so. */
static void note(uintptr_t start, uintptr_t end)
{
    struct slot *table;
    for (int number = 0; number < TABLES && (table = table_at(number, true)); number++)
        for (size_t i = 0; i < slots_in(number); i++) {
            uintptr_t free = 0;
            if (atomic_load(&table[i].start) ||
                !atomic_compare_exchange_strong(&table[i].start, &free, 1))
                continue;
            atomic_store(&table[i].end, end);
            atomic_store(&table[i].start, start);
            return;
        }
}

void os_own(uintptr_t start, size_t bytes)
{
    note(start, start + bytes);
}

void os_own_with_spare(uintptr_t start, size_t bytes)
{
    note(start, (start + bytes + OS_SPARE) | SPARE);
}

/* Whoever clears the bit has the spare bytes: the owner of the range, or who takes them. */
static bool take_spare(struct slot *slot, uintptr_t end, uintptr_t left)
{
    uintptr_t with = end | SPARE;
    return atomic_compare_exchange_strong(&slot->end, &with, left);
}

bool os_take_spare(uintptr_t end)
{
    struct slot *table;
    for (int number = 0; number < TABLES && (table = table_at(number, false)); number++)
        for (size_t i = 0; i < slots_in(number); i++)
            if (atomic_load(&table[i].start) > 1 && take_spare(&table[i], end, end - OS_SPARE))
                return true;
    return false;
}

/*
 * Takes a range out of a slot, and spare bytes that follow it, whose size is returned.  Only the
 * caller that owns a range gives it up, so no other thread changes the slots that it lies in at the
 * same time, except for os_take_spare().
 */
static size_t cut(struct slot *slot, uintptr_t start, uintptr_t end)
{
    size_t along = 0;
    uintptr_t from = atomic_load(&slot->start), to = end_of(slot);
    if (from <= 1 || from >= end || to <= start)
        return 0;
    if (end + OS_SPARE >= to && take_spare(slot, to, to))
        along = end < to ? to - end : 0;
    if (from < start) {
        to = atomic_exchange(&slot->end, start);
        if (to > end + along)
            note(end, to);
    } else {
        atomic_store(&slot->start, end_of(slot) > end + along ? end : 0);
    }
    return along;
}

size_t os_disown(uintptr_t start, size_t bytes)
{
    size_t along = 0;
    struct slot *table;
    for (int number = 0; number < TABLES && (table = table_at(number, false)); number++)
        for (size_t i = 0; i < slots_in(number); i++)
            along |= cut(&table[i], start, start + bytes);
    return along;
}

bool os_owns(uintptr_t address)
{
    struct slot *table;
    for (int number = 0; number < TABLES && (table = table_at(number, false)); number++)
        for (size_t i = 0; i < slots_in(number); i++) {
            uintptr_t start = atomic_load(&table[i].start);
            if (start > 1 && address >= start && address < end_of(&table[i]))
                return true;
        }
    return false;
}

struct list {
    struct ksmpy_range *out;
    int64_t max, count;
};

static void add(struct list *list, uintptr_t start, uintptr_t end)
{
    if (start > 1 && end > start && list->count++ < list->max)
        list->out[list->count - 1] = (struct ksmpy_range){start, end};
}

/*
 * Adds the library's variables: the writable segments of the loaded object in which one of them
 * lies.  The first pass finds out whether it is that object, the second one adds.
 */
static int add_variables(struct dl_phdr_info *object, size_t size, void *list)
{
    uintptr_t known = (uintptr_t)first;
    bool ours = false;
    (void)size;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < object->dlpi_phnum; i++) {
            const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
            uintptr_t start = object->dlpi_addr + segment->p_vaddr;
            uintptr_t end = start + segment->p_memsz;
            if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_W))
                continue;
            ours = ours || (known >= start && known < end);
            if (pass && ours)
                add(list, start, end);
        }
    return ours;
}

int64_t os_own_memory(struct ksmpy_range *out, int64_t max)
{
    struct list list = {.out = out, .max = max};
    struct slot *table;
    dl_iterate_phdr(add_variables, &list);
    for (int number = 0; number < TABLES && (table = table_at(number, false)); number++) {
        if (number)
            add(&list, (uintptr_t)table, (uintptr_t)(table + slots_in(number)));
        for (size_t i = 0; i < slots_in(number); i++)
            add(&list, atomic_load(&table[i].start), end_of(&table[i]));
    }
    return list.count;
}
