/* The mapping budget: how many mappings there are, and may be. */
#ifndef KSMPY_MERGE_BUDGET_H
#define KSMPY_MERGE_BUDGET_H

#include "merge/merger.h"

void budget_count(struct budget *budget);
/*
 * At the start of a pass: is there anything to count?  Not where the engine has taken and given little
 * since the last count, beside the room that is left, and refused nothing, the limit is the same, and
 * the program had no time for many mappings.
 */
bool budget_is_outdated(const struct budget *budget);
/*
 * The same by who lets others have the lock while it counts (os_mappings): what they take until then
 * is added, and if they have counted themselves nothing is done.
 */
struct census_of_mappings {
    uint64_t counts, mappings, begin_ns;
};
struct census_of_mappings budget_before_count(const struct budget *budget);
void budget_counted(struct budget *budget, struct census_of_mappings before, int64_t mappings);
/* At the start of a pass, counted: are refused pages to be looked up again? */
void budget_survey(struct budget *budget);
/* May a run of n pages take so many mappings more? */
bool budget_allows(struct budget *budget, uint64_t n, uint64_t more);
/* Before a region of n pages is to be registered; refusing many does not take long. */
bool budget_should_count(const struct budget *budget, uint64_t n, uint64_t more);
bool budget_admits(struct budget *budget, uint64_t n, uint64_t more);
/* A registration, and the end of one: others may have room, or want it, from now on. */
void budget_region_came(struct budget *budget);
void budget_region_went(struct budget *budget);
/*
 * SEEN pages of a run that was refused: they are passed over until a run of that length would not
 * be.
 */
void budget_refuse(struct budget *budget, uint32_t page, uint64_t n, uint64_t length);
/* Is there room for what must be done whatever comes later? Never counts. */
bool budget_has_room(const struct budget *budget, uint64_t more);
/* The same, but counts anew if there seems to be none. */
bool budget_has_room_recounted(struct budget *budget, uint64_t more);

#endif
