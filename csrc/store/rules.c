#include "store/rules.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/checksum.h"
#include "ksmpy.h"
#include "os/clock.h"
#include "store/layout.h"
#include "store/store.h"

void store_default_rules(uint64_t *knobs)
{
    knobs[KSMPY_KNOB_MERGE_ACROSS_NODES] = 1;
    knobs[KSMPY_KNOB_MAX_PAGE_SHARING] = 256;
    knobs[KSMPY_KNOB_USE_ZERO_PAGES] = 1;
}

int rule_check(int knob, uint64_t value)
{
    switch (knob) {
    case KSMPY_KNOB_MERGE_ACROSS_NODES:
    case KSMPY_KNOB_USE_ZERO_PAGES:
        return value <= 1 ? 0 : -EINVAL;
    case KSMPY_KNOB_MAX_PAGE_SHARING:
        return value >= 2 && value <= INT32_MAX ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

bool rules_are_sound(const uint64_t *knobs)
{
    for (int knob = 0; knob < STORE_KNOBS; knob++)
        if (rule_check(knob, knobs[knob]) < 0)
            return false;
    return true;
}

/* ---- the key ---- */

/* 0: none. */
static _Atomic uint64_t fixed_key;

void store_fix_key(uint64_t seed)
{
    atomic_store(&fixed_key, seed);
}

void store_new_key(struct store *store)
{
    uint64_t fixed = atomic_load(&fixed_key);
    store->head->key = fixed ? fixed : os_random();
    checksum_make_key(&store->key, store->head->key);
}
