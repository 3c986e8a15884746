/*
 * Rules that all sharers of a store follow, and the key of its checksums.
 */
#ifndef KSMPY_STORE_RULES_H
#define KSMPY_STORE_RULES_H

#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

void store_default_rules(uint64_t *knobs); /* STORE_KNOBS of them */
int rule_check(int knob, uint64_t value); /* -EINVAL: not a rule, or no value for it */
bool rules_are_sound(const uint64_t *knobs);
void store_new_key(struct store *store); /* at random, unless it is fixed */
void store_fix_key(uint64_t seed); /* of stores that are made from now on; 0: at random again */

#endif
