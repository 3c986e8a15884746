#include "os/imports.h"

#include <elf.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/pages.h"
#include "os/clock.h"
#include "os/map.h"
#include "os/proc_maps.h"
#include "os/unhooked.h"

/* What the dynamic linker fills with the address of a function: psABI of x86-64, AAELF64. */
#if defined(__x86_64__)
#define CALLED R_X86_64_JUMP_SLOT
#define TAKEN R_X86_64_GLOB_DAT
#define STORED R_X86_64_64
#elif defined(__aarch64__)
#define CALLED R_AARCH64_JUMP_SLOT
#define TAKEN R_AARCH64_GLOB_DAT
#define STORED R_AARCH64_ABS64
#endif

/*
 * After something was loaded it is looked so often, with pauses of 1 ms, 2 ms and so on, 4 s in all.
 * An object that is just being loaded has to be complete first: until then its entries have addresses
 * of nobody, so that a look finds nothing.  And a thread that binds a function for the first time may
 * undo what was done just then.
 */
#define LOOKS 12
#define FIRST_PAUSE_NS ((uint64_t)1000000)
/*
 * A look took 0.6 ms in a process with 22 objects and 8 ms in one with 419; the dynamic linker waits
 * meanwhile.  While objects are loaded one after another no more than a twentieth goes to looking.
 */
#define REST 20
#define ENTRIES_MAX 16384 /* found in one look, the rest in the next: 384 KiB */

struct object {
    uintptr_t base, start, end; /* end: of the last segment */
    uintptr_t sealed_start, sealed_end; /* made read-only once it is loaded (RELRO) */
    const ElfW(Dyn) * dynamic;
};

struct tables {
    const ElfW(Rela) * relocations[2];
    size_t n[2];
    const ElfW(Sym) * symbols;
    const char *names;
};

/* Of a global offset table. */
struct entry {
    uintptr_t address, now;
    uint16_t import;
    bool to_be_sealed, sealed, ready;
};

/* What was loaded and unloaded in this process so far. */
struct changes {
    unsigned long long loaded, unloaded;
};

struct look {
    const struct os_import *imports;
    size_t n_imports;
    struct entry *entries;
    size_t n;
    struct changes changes; /* when the entries were found */
};

static struct {
    struct changes changes;
    int looks; /* still to come */
    uint64_t pause, not_before; /* ns */
    struct entry *entries; /* room for ENTRIES_MAX of them, for one look after the other */
} led;

/*
 * A fork waits while somebody looks, who then has the linker's lock and waits for nobody.  For who
 * waits to look it waits so long at most: a third thread has that lock, for whatever it does, and
 * the child will find it taken in any case.
 */
#define WAITING_NS ((uint64_t)2000000)

enum { NOBODY, WAITS, LOOKS_NOW };
static _Atomic int looker = NOBODY;
static _Atomic bool forking;
static atomic_flag busy = ATOMIC_FLAG_INIT;

/* In a function that dl_iterate_phdr() calls: may it look?  Not where a fork is about to happen. */
static bool may_look(void)
{
    atomic_store(&looker, LOOKS_NOW);
    return !atomic_load(&forking);
}

static void iterate(int (*visit)(struct dl_phdr_info *, size_t, void *), void *data)
{
    atomic_store(&looker, WAITS);
    if (!atomic_load(&forking))
        dl_iterate_phdr(visit, data);
    atomic_store(&looker, NOBODY);
}

void os_imports_before_fork(void)
{
    atomic_store(&forking, true);
    uint64_t start = os_now_ns();
    for (unsigned looks = 0; atomic_load(&looker) != NOBODY; os_back_off(looks++))
        if (atomic_load(&looker) == WAITS && os_now_ns() - start > WAITING_NS)
            break;
}

void os_imports_after_fork(bool in_child)
{
    atomic_store(&forking, false);
    if (in_child) { /* nobody looks here */
        atomic_store(&looker, NOBODY);
        atomic_flag_clear(&busy);
    }
}

static struct object object_of(const struct dl_phdr_info *info)
{
    struct object object = {.base = info->dlpi_addr, .start = UINTPTR_MAX};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t start = object.base + part->p_vaddr, end = start + part->p_memsz;
        if (part->p_type == PT_LOAD && start < object.start)
            object.start = start;
        if (part->p_type == PT_LOAD && end > object.end)
            object.end = end;
        if (part->p_type == PT_DYNAMIC)
            object.dynamic = (const ElfW(Dyn) *)start;
        if (part->p_type == PT_GNU_RELRO) { /* the linker seals whole pages only */
            object.sealed_start = start & ~(uintptr_t)(PAGE_SIZE - 1);
            object.sealed_end = end & ~(uintptr_t)(PAGE_SIZE - 1);
        }
    }
    return object;
}

static bool contains(const struct object *object, uintptr_t address)
{
    return address >= object->start && address < object->end;
}

/* glibc writes addresses over the offsets that stand there, musl does not. */
static uintptr_t pointed_at(const struct object *object, const ElfW(Dyn) * entry)
{
    uintptr_t value = entry->d_un.d_ptr;
    return value < object->base ? object->base + value : value;
}

static bool find_tables(const struct object *object, struct tables *tables)
{
    size_t relative = 0;
    *tables = (struct tables){.symbols = NULL};
    for (const ElfW(Dyn) *entry = object->dynamic; entry->d_tag != DT_NULL; entry++) {
        switch (entry->d_tag) {
        case DT_JMPREL:
            tables->relocations[0] = (const ElfW(Rela) *)pointed_at(object, entry);
            break;
        case DT_PLTRELSZ:
            tables->n[0] = entry->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_RELA:
            tables->relocations[1] = (const ElfW(Rela) *)pointed_at(object, entry);
            break;
        case DT_RELASZ:
            tables->n[1] = entry->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_RELACOUNT:
            relative = entry->d_un.d_val;
            break;
        case DT_SYMTAB:
            tables->symbols = (const ElfW(Sym) *)pointed_at(object, entry);
            break;
        case DT_STRTAB:
            tables->names = (const char *)pointed_at(object, entry);
            break;
        default:
            break;
        }
    }
    if (relative <= tables->n[1]) { /* they come first, and name nothing */
        tables->relocations[1] += relative;
        tables->n[1] -= relative;
    }
    return tables->symbols && tables->names;
}

static int compare_names(const void *name, const void *import)
{
    return strcmp(name, ((const struct os_import *)import)->name);
}

/* ---- finding ---- */

/*
 * The entry has the function's address, or that of a piece of the object's own code which finds it
 * at the first call.  Whatever else it has, the program has chosen, or the linker will change.
 */
static void find_entry(struct look *look, const struct object *object, uintptr_t address,
                       const struct os_import *import, bool called)
{
    uintptr_t now = atomic_load((_Atomic uintptr_t *)address);
    if ((now != import->theirs && !(called && contains(object, now))) || look->n == ENTRIES_MAX)
        return;
    look->entries[look->n++] = (struct entry){
        .address = address,
        .now = now,
        .import = (uint16_t)(import - look->imports),
        .to_be_sealed = address >= object->sealed_start && address < object->sealed_end,
    };
}

static void find_entries(struct look *look, const struct object *object,
                         const struct tables *tables, int which)
{
    for (size_t i = 0; i < tables->n[which]; i++) {
        const ElfW(Rela) *relocation = &tables->relocations[which][i];
        uint32_t type = ELF64_R_TYPE(relocation->r_info);
        if ((type != CALLED && type != TAKEN && type != STORED) || relocation->r_addend)
            continue;
        const ElfW(Sym) *symbol = &tables->symbols[ELF64_R_SYM(relocation->r_info)];
        if (symbol->st_shndx != SHN_UNDEF)
            continue;
        const struct os_import *import = bsearch(tables->names + symbol->st_name, look->imports,
                                                 look->n_imports, sizeof *import, compare_names);
        if (import && import->theirs)
            find_entry(look, object, object->base + relocation->r_offset, import, type == CALLED);
    }
}

static struct changes changes_of(const struct dl_phdr_info *info)
{
    return (struct changes){.loaded = info->dlpi_adds, .unloaded = info->dlpi_subs};
}

static bool same_changes(struct changes a, struct changes b)
{
    return a.loaded == b.loaded && a.unloaded == b.unloaded;
}

static int look_at_object(struct dl_phdr_info *info, size_t size, void *data)
{
    struct look *look = data;
    struct object object = object_of(info);
    struct tables tables;
    (void)size;
    if (!may_look())
        return 1;
    look->changes = changes_of(info);
    if (!object.dynamic || contains(&object, (uintptr_t)&led) || !find_tables(&object, &tables))
        return 0;
    for (int which = 0; which < 2; which++)
        find_entries(look, &object, &tables, which);
    return 0;
}

static int compare_entries(const void *one, const void *two)
{
    const struct entry *a = one, *b = two;
    return (a->address > b->address) - (a->address < b->address);
}

/*
 * Which entries may be written to?  The linker may seal what is writable at any moment, so of what
 * it will seal only what it has sealed is ready.
 */
static void see_rights(struct look *look)
{
    struct os_maps maps;
    struct os_vma vma;
    qsort(look->entries, look->n, sizeof *look->entries, compare_entries);
    if (os_maps_open(&maps) == 0)
        for (size_t i = 0; i < look->n; i++) {
            struct entry *entry = &look->entries[i];
            bool found =
                os_maps_find(&maps, entry->address, &vma) == 1 && vma.start <= entry->address;
            entry->sealed = found && vma.private_ro;
            entry->ready = entry->sealed || (found && vma.private_rw && !entry->to_be_sealed);
        }
    os_maps_close(&maps);
}

/* ---- writing ---- */

static void lead(const struct look *look, const struct entry *entry)
{
    uintptr_t now = entry->now;
    atomic_compare_exchange_strong((_Atomic uintptr_t *)entry->address, &now,
                                   look->imports[entry->import].ours);
}

/* The entries from one on that are in the same page; returns how many. */
static size_t lead_page(const struct look *look, size_t first)
{
    uintptr_t page = look->entries[first].address & ~(uintptr_t)(PAGE_SIZE - 1);
    bool sealed = look->entries[first].sealed;
    bool open = !sealed || os_mprotect((void *)page, PAGE_SIZE, PROT_READ | PROT_WRITE) == 0;
    size_t i = first;
    for (; i < look->n && look->entries[i].address - page < PAGE_SIZE; i++)
        if (open && look->entries[i].ready)
            lead(look, &look->entries[i]);
    if (sealed && open)
        os_mprotect((void *)page, PAGE_SIZE, PROT_READ);
    return i - first;
}

/* With the linker's lock, which dl_iterate_phdr() has: what was found is still loaded, or nothing is done. */
static int lead_all(struct dl_phdr_info *info, size_t size, void *data)
{
    const struct look *look = data;
    (void)size;
    if (may_look() && same_changes(look->changes, changes_of(info)))
        for (size_t i = 0; i < look->n;)
            i += lead_page(look, i);
    return 1;
}

/* ---- when ---- */

static int see_changes(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    if (may_look())
        *(struct changes *)data = changes_of(info);
    return 1;
}

static bool is_due(void)
{
    struct changes changes = led.changes;
    iterate(see_changes, &changes);
    if (!same_changes(changes, led.changes)) {
        led.changes = changes;
        led.looks = LOOKS;
        led.pause = FIRST_PAUSE_NS;
    }
    return led.looks && os_now_ns() >= led.not_before;
}

static void look_once(const struct os_import *imports, size_t n)
{
    if (!led.entries)
        led.entries = os_alloc(ENTRIES_MAX * sizeof(struct entry));
    if (!led.entries)
        return;
    struct look look = {.imports = imports, .n_imports = n, .entries = led.entries};
    uint64_t start = os_now_ns();
    iterate(look_at_object, &look);
    see_rights(&look);
    iterate(lead_all, &look);
    led.looks--;
    uint64_t end = os_now_ns(), rest = REST * (end - start);
    led.not_before = end + (led.pause > rest ? led.pause : rest);
    led.pause *= 2;
}

void os_imports_lead(const struct os_import *imports, size_t n)
{
    if (atomic_flag_test_and_set(&busy))
        return;
    if (is_due())
        look_once(imports, n);
    atomic_flag_clear(&busy);
}
