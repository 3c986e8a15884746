/*
 * What is asked of the kernel for each slice takes the longer the more files and mappings a program
 * has: how often that is done, under a clock of the test's own.
 */
#include "base/pages.h"
#include "check.h"
#include "merge/bar.h"
#include "merge/merger.h"
#include "os/devices.h"

#define MS ((uint64_t)1000000)
#define SECONDS 20

static struct merger merger;
static uint64_t now_ns, files_take, rings_take; /* ns */
static uint64_t asked_files, asked_rings; /* how often */
static bool has_files, has_rings;

uint64_t __wrap_os_now_ns(void)
{
    return now_ns;
}

bool __wrap_os_has_device_files(void)
{
    asked_files++;
    now_ns += files_take;
    return has_files;
}

bool __wrap_os_has_mapped_rings(void)
{
    asked_rings++;
    now_ns += rings_take;
    return has_rings;
}

static void begin(uint64_t files_ns, uint64_t rings_ns)
{
    merger = (struct merger){.bar = {.minds_devices = true}};
    now_ns = 1;
    files_take = files_ns;
    rings_take = rings_ns;
    asked_files = asked_rings = 0;
    has_files = has_rings = false;
}

/* Asks again and again, 0.1 ms apart, until what is said of devices is this; how many ns that took. */
static uint64_t until(bool devices)
{
    uint64_t from = now_ns;
    while (coming_back_is_barred(&merger) != devices && now_ns - from < SECONDS * 1000 * MS)
        now_ns += MS / 10;
    return now_ns - from;
}

/* With so many mappings a question takes most of the time in which it is not asked again. */
static void mappings_are_looked_at_for_a_part_of_the_time(void)
{
    begin(MS / 10, 6 * MS);
    while (now_ns < SECONDS * 1000 * MS) {
        CHECK(!coming_back_is_barred(&merger));
        now_ns += MS / 10;
    }
    CHECK(asked_rings * rings_take < now_ns / 16);
    CHECK(asked_rings > SECONDS * 5);
    CHECK(asked_files * files_take < now_ns / 16);
    CHECK(asked_files > SECONDS * 100);
}

/* There may be so many descriptors that time is up when the answer is there. */
static void who_asks_twice_is_answered_once(void)
{
    begin(50 * MS, 50 * MS);
    for (int i = 0; i < 100; i++)
        CHECK(!coming_back_is_barred(&merger));
    CHECK(asked_files == 2 && asked_rings == 1); /* twice, as to look at mappings took 50 ms */
}

/* A ring that is only mapped is found later than a descriptor, and is not forgotten meanwhile. */
static void what_comes_is_seen_in_time(void)
{
    begin(MS / 10, 6 * MS);
    until(true);
    has_files = true;
    CHECK(until(true) <= 10 * MS);
    has_files = false;
    CHECK(until(false) <= 10 * MS + 6 * MS);
    has_rings = true;
    CHECK(until(true) <= 200 * MS);
    for (int i = 0; i < 1000; i++, now_ns += MS / 10)
        CHECK(coming_back_is_barred(&merger));
    has_rings = false;
    CHECK(until(false) <= 200 * MS);
}

/* The process may have been stopped just then. */
static void a_question_that_took_an_hour_is_asked_again_soon(void)
{
    begin(3600 * 1000 * MS, 3600 * 1000 * MS);
    CHECK(!coming_back_is_barred(&merger));
    files_take = rings_take = MS;
    has_rings = true;
    CHECK(until(true) <= 220 * MS);
}

int main(void)
{
    RUN(mappings_are_looked_at_for_a_part_of_the_time);
    RUN(who_asks_twice_is_answered_once);
    RUN(what_comes_is_seen_in_time);
    RUN(a_question_that_took_an_hour_is_asked_again_soon);
    return finish();
}
