#include "freeze/known_mappings.h"

#include <stddef.h>

struct known_mapping *known_mapping_at(struct freezer *fz, uintptr_t address)
{
    for (int i = 0; i < KNOWN_MAPPINGS; i++)
        if (fz->known[i].begin && fz->known[i].begin < address && address <= fz->known[i].reach)
            return &fz->known[i];
    return NULL;
}

struct known_mapping *known_mapping_note(struct freezer *fz, uintptr_t begin)
{
    for (int i = 0; i < KNOWN_MAPPINGS; i++)
        if (fz->known[i].begin == begin)
            return &fz->known[i];
    struct known_mapping *mapping = &fz->known[fz->known_next++ % KNOWN_MAPPINGS];
    *mapping = (struct known_mapping){.begin = begin};
    return mapping;
}

void known_mapping_ends(struct freezer *fz, uintptr_t address)
{
    for (int i = 0; i < KNOWN_MAPPINGS; i++)
        if (address < fz->known[i].reach)
            fz->known[i].reach = address;
}
