/*
 * What is done to the store once its lock is to be had.
 */
#ifndef KSMPY_STORE_DEBTS_H
#define KSMPY_STORE_DEBTS_H

#include <stdint.h>

#include "store/store.h"

enum debt_kind {
    DEBT_LEAVE, /* frame */
    DEBT_PIN, /* frame */
    DEBT_FREE, /* frame */
    DEBT_WITHDRAW, /* tree, sum */
    DEBT_SETTLE, /* tree, sum */
    DEBT_GIVE_UP, /* tree, sum */
};

struct debt {
    uint64_t sum;
    uint32_t frame;
    uint8_t kind, tree;
};

void store_owe(struct store *store, struct debt debt);
void debt_pay(struct store *store, struct debt debt); /* with the lock held */
void store_pay(struct store *store); /* all of it, with the lock held */
void store_forgive(struct store *store); /* nobody is owed anything any more */

#endif
