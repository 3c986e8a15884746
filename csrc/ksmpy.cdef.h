/*
 * The native interface, as both the C compiler and cffi read it: plain
 * declarations only, no directives.  Functions return 0 or a count, or a
 * negative errno.  Every function may be called from any thread; none needs
 * the GIL, and none calls back into Python.
 */

typedef struct ksmpy_engine ksmpy_engine;

enum ksmpy_limit {
    KSMPY_PAGE_SIZE = 4096, /* bytes; other machines are not supported */
    KSMPY_MAX_NODES = 32 /* NUMA nodes of an engine */
};

enum ksmpy_freeze {
    KSMPY_FREEZE_AUTO = 0,
    KSMPY_FREEZE_UFFD_MOVE = 1,  /* UFFDIO_MOVE to a scratch window (Linux 6.8) */
    KSMPY_FREEZE_UFFD_REMAP = 2, /* mremap(MREMAP_DONTUNMAP) to a scratch window */
    KSMPY_FREEZE_SIGNAL = 3,     /* mprotect and a chained SIGSEGV handler */
    KSMPY_FREEZE_UFFD_WP = 4     /* write protection that blocks (Linux 5.19) */
};

enum ksmpy_tracking {
    KSMPY_TRACKING_AUTO = 0,
    KSMPY_TRACKING_WP_ASYNC = 1, /* asynchronous write protection and PAGEMAP_SCAN (Linux 6.7) */
    KSMPY_TRACKING_CHECKSUM = 2  /* compare each page's checksum with the last pass's */
};

/* Knobs that the engine itself obeys, by the kernel's names; the other ones live in Python. */
enum ksmpy_knob {
    KSMPY_KNOB_MERGE_ACROSS_NODES = 0,
    KSMPY_KNOB_MAX_PAGE_SHARING = 1,
    KSMPY_KNOB_USE_ZERO_PAGES = 2,
    KSMPY_KNOB_SMART_SCAN = 3,
    KSMPY_KNOB_STABLE_NODE_CHAINS_PRUNE_MILLISECS = 4,
    KSMPY_KNOB_VMA_SHARE_PERCENT = 5, /* share of vm.max_map_count the process may reach */
    KSMPY_KNOB_COUNT = 6
};

/*
 * VMA properties of a region that a mapping put in its place must repeat; UNKNOWN and GROWING are
 * none.
 */
enum ksmpy_vma_flag {
    KSMPY_VMA_HUGEPAGE = 1,
    KSMPY_VMA_NOHUGEPAGE = 2,
    KSMPY_VMA_DONTDUMP = 4,
    KSMPY_VMA_UNKNOWN = 8, /* nothing of the region is merged before ksmpy_set_vma_flags() */
    KSMPY_VMA_GROWING = 16 /* its owner may make it longer (mremap): some pages stay as they are */
};

enum ksmpy_scan_flag {
    KSMPY_SCAN_EAGER = 1, /* merge at first sight: do not wait a pass for volatile pages */
    KSMPY_SCAN_RESTART = 2, /* start at the first region instead of at the cursor */
    KSMPY_SCAN_PATIENT = 4, /* from now on, for 0.3 s, wait for threads that run */
    KSMPY_SCAN_BACK_OFF = 8 /* let memory rest for longer each time that it was written all over */
};

/* What this machine offers, probed by trying it. 1 yes, 0 no; errors are errno values. */
struct ksmpy_caps {
    int uffd; /* userfaultfd can be had at all */
    int uffd_errno; /* why not */
    int uffd_kernel_mode; /* faults inside syscalls are handled too (else EFAULT) */
    int uffd_move;
    int uffd_wp_async;
    int uffd_wp_shmem; /* write protection of overlays */
    int mremap_dontunmap;
    int pagemap_scan;
    int madv_populate;
    int memfd;
};

struct ksmpy_options {
    int freeze; /* enum ksmpy_freeze */
    int tracking; /* enum ksmpy_tracking */
    int nodes; /* how many NUMA nodes, 1 to KSMPY_MAX_NODES */
    const int *node_ids; /* their numbers for mbind, or NULL: no placement */
    int store_fd; /* of the file that engines share, open for reading and writing; 0 or less: a private store */
};

struct ksmpy_scan_result {
    uint64_t scanned; /* pages looked at */
    uint64_t skipped; /* pages passed over: unchanged and settled, or by smart_scan */
    uint64_t merged; /* pages mapped onto a frame */
    uint64_t zeroed; /* pages mapped to the kernel's zero page */
    uint64_t unmerged; /* pages found written since they were merged */
    uint64_t volatiles; /* pages written since the previous pass */
    uint64_t differed; /* pages whose bytes changed before they could be frozen */
    uint64_t busy; /* pages the kernel would not let go (pinned for I/O) */
    uint64_t no_budget; /* pages left alone because mappings are scarce */
    uint64_t no_memory; /* pages left alone because the store could not grow */
    uint64_t lost; /* registered pages whose memory is no longer the owner's */
    uint64_t full; /* passes that ended; 2: one by the end of its last region, before the call */
};

struct ksmpy_stats {
    uint64_t pages_shared;
    uint64_t pages_sharing;
    uint64_t pages_unshared;
    uint64_t pages_volatile;
    uint64_t pages_scanned;
    uint64_t pages_skipped;
    uint64_t full_scans;
    uint64_t ksm_zero_pages;
    uint64_t pages_untouched; /* on the zero page, or nowhere, by themselves */
    uint64_t stable_node_chains;
    uint64_t stable_node_dups;
    uint64_t stale_frames; /* frames without a sharer that a forked child may still map */
    uint64_t huge_frames; /* frames in use that lie on huge pages */
    uint64_t spare_frames; /* room of such pages that no frame uses, and that keeps its memory */
    uint64_t registered_pages;
    uint64_t merging_pages; /* of this engine's; pages_shared + pages_sharing are the store's */
    uint64_t metadata_bytes;
    uint64_t store_metadata_bytes; /* the part of it that is the store's */
    uint64_t frame_bytes; /* memory that the store's memfd holds */
    uint64_t vmas; /* mappings of the whole process */
    uint64_t vma_limit; /* how many the engine lets it have */
    uint64_t pages_busy; /* totals of the refusals that ksmpy_scan reports */
    uint64_t pages_no_budget;
    uint64_t pages_no_memory;
    uint64_t pages_differed;
    uint64_t pages_lost;
};

struct ksmpy_region_stats {
    uint64_t rmap_items; /* pages seen by the scanner */
    uint64_t merging_pages; /* pages on a frame, the first included */
    uint64_t zero_pages; /* pages on the kernel's zero page, placed by the engine */
    uint64_t saved_pages; /* this region's part of pages_sharing */
};

struct ksmpy_share {
    uint32_t region_a; /* a <= b */
    uint32_t region_b;
    uint64_t pages; /* pages of a and b that lie on common frames: min of the two per frame */
};

struct ksmpy_range {
    uintptr_t start;
    uintptr_t end;
};

enum ksmpy_owner {
    KSMPY_OWNER_MALLOC = 1, /* glibc's malloc */
    KSMPY_OWNER_PYTHON = 2 /* CPython, for small objects */
};

struct ksmpy_owned {
    uintptr_t start;
    uintptr_t end;
    uint32_t owner; /* enum ksmpy_owner */
};

int ksmpy_probe(struct ksmpy_caps *caps);
/* 1: the process has io_uring, libaio or devices that may write into its memory unseen. */
int ksmpy_has_devices(void);
/* 0: frames can lie on huge pages; or why not: EINVAL they are not allowed, or unknown; ENOMEM. */
int ksmpy_try_huge_frames(void);
/*
 * The memory that the engines of this process use for themselves, their threads' stacks included:
 * none of it may be registered. Writes up to max ranges; returns how many there are.
 */
int64_t ksmpy_own_memory(struct ksmpy_range *out, int64_t max);
/*
 * What of [start, end), mapped memory, belongs to an allocator that does not count on zeros where it
 * has given memory back, in order; as far as what is written there tells. heap: it is that of brk().
 * The memory may change and go meanwhile. Writes up to max; returns how many there are.
 */
int64_t ksmpy_find_owners(uintptr_t start, uintptr_t end, int heap, struct ksmpy_owned *out,
                          int64_t max);
/* The first page of [start, end) that is in memory, without asking for each; end if there is none. */
uintptr_t ksmpy_next_in_memory(uintptr_t start, uintptr_t end);
/*
 * Bytes that this process may still take, and in which what allows no more: a cgroup's path, "the
 * machine", or nothing where there is no limit.
 */
int64_t ksmpy_memory_left(char *which, size_t size);

/*
 * On a shared store also: EUCLEAN its file is damaged; EPROTO not a store, or of another layout;
 * ESTALE it was retired; EXDEV it has another number of nodes; EREMOTE it is in use in another pid
 * namespace; EUSERS no slot is left; ENOSPC the file system is full; ETIMEDOUT somebody holds its lock for long, which every call but release and
 * close may say: they end what they are asked to, and tell the store later.
 */
int ksmpy_engine_new(const struct ksmpy_options *options, ksmpy_engine **out);
/* Stops the fault thread and frees everything. EBUSY while regions are registered. */
int ksmpy_engine_close(ksmpy_engine *engine);
int ksmpy_engine_freeze(ksmpy_engine *engine); /* what "auto" chose */
int ksmpy_engine_tracking(ksmpy_engine *engine);
/* 1 in a child that inherited the engine by fork: everything but release and close gives EPERM. */
int ksmpy_engine_forked(ksmpy_engine *engine);
/*
 * Makes it an engine of the child's own, with the same regions, on the store that it shares with
 * its parent. EPERM: the store is private.
 */
int ksmpy_revive(ksmpy_engine *engine);

/* A shared store as a whole; fd is open for reading and writing. */
struct ksmpy_store_stats {
    uint64_t pages_shared;
    uint64_t pages_sharing;
    uint64_t stale_frames;
    uint64_t huge_frames;
    uint64_t spare_frames;
    uint64_t stable_node_chains;
    uint64_t stable_node_dups;
    uint64_t frame_bytes;
    uint64_t metadata_bytes;
    uint64_t merge_across_nodes;
    uint64_t max_page_sharing;
    uint64_t use_zero_pages;
    uint64_t deaths; /* processes that ended without leaving, as far as noticed */
    uint64_t rebuilds; /* how often the index was made anew after one died inside it */
    uint64_t lock_waits; /* how often a process waited for the lock, and how long in all */
    uint64_t lock_wait_ns;
    uint64_t lock_hold_max_ns; /* longest time it was held, of a sample */
    uint64_t full; /* 1: frames have taken what its file system has for them */
};

struct ksmpy_store_process {
    uint32_t pid;
    uint32_t inherited; /* a forked child that has not used its engine */
    uint64_t merging_pages; /* its pages on frames */
};

/* The process that has the store locked just now, or 0; without waiting for anything. */
int64_t ksmpy_store_holder(int fd);
int ksmpy_store_stats(int fd, struct ksmpy_store_stats *out);
/* Writes up to max entries; returns how many there are. */
int64_t ksmpy_store_processes(int fd, struct ksmpy_store_process *out, int64_t max);
/* From now on nobody can attach. EBUSY while any process does. */
int ksmpy_store_retire(int fd);

/*
 * Both page aligned, in bytes. EEXIST: overlaps a region; EBUSY: another userfaultfd owns it; EDQUOT:
 * it would take mappings, of which the process has as many as the engine lets it have. With
 * KSMPY_VMA_UNKNOWN also EADDRNOTAVAIL: not all of it is private, anonymous and writable.
 */
int ksmpy_register(ksmpy_engine *engine, uintptr_t address, size_t length, int vma_flags,
                   uint32_t *region);
/* Of the region that begins there: another one may have got its number meanwhile (ENOENT). */
int ksmpy_set_vma_flags(ksmpy_engine *engine, uint32_t region, uintptr_t address, int vma_flags);
/* The lowest region with a page in that range, or -ENOENT. */
int64_t ksmpy_find_region(ksmpy_engine *engine, uintptr_t address, size_t length);
/* discard: the memory is about to be freed, its bytes need not be kept. */
int ksmpy_release(ksmpy_engine *engine, uint32_t region, int discard);
/*
 * Regions whose memory was unmapped or replaced behind our back: how many, up to max of them in
 * regions.
 */
int64_t ksmpy_find_lost(ksmpy_engine *engine, uint32_t *regions, int64_t max);
int ksmpy_unmerge_region(ksmpy_engine *engine, uint32_t region);
/* All regions. 0, or the first error; pages that could not be unmerged stay merged. */
int ksmpy_unmerge(ksmpy_engine *engine);

int ksmpy_scan(ksmpy_engine *engine, uint64_t max_pages, int flags,
               struct ksmpy_scan_result *result);
/* Makes a ksmpy_scan that runs in another thread return early. */
void ksmpy_interrupt(ksmpy_engine *engine);

int ksmpy_knob_set(ksmpy_engine *engine, int knob, uint64_t value);
int ksmpy_knob_get(ksmpy_engine *engine, int knob, uint64_t *value);

/*
 * Looks for merged pages that were written since, and takes them apart, so that the counters are
 * exact.
 */
int ksmpy_refresh(ksmpy_engine *engine);
/*
 * ksmpy_refresh() and ksmpy_stats() in one, which asks for the engine's lock once: each time may be
 * a wait for another thread's slice.
 */
int ksmpy_exact_stats(ksmpy_engine *engine, struct ksmpy_stats *out);
/* The counters as they are. */
int ksmpy_stats(ksmpy_engine *engine, struct ksmpy_stats *out);
/* The same without vmas, which is 0: to count 9000 mappings takes 5 ms. */
int ksmpy_counters(ksmpy_engine *engine, struct ksmpy_stats *out);
/* 1: a shared store whose frames have taken what its file system has for them. Never waits. */
int ksmpy_store_full(ksmpy_engine *engine);
/*
 * A region's counters, and its engine's as ksmpy_counters() has them; ksmpy_refresh() comes first.
 * ENOENT: the region has ended.
 */
int ksmpy_region_stats(ksmpy_engine *engine, uint32_t region, struct ksmpy_region_stats *out,
                       struct ksmpy_stats *of_engine);
/* Writes up to max entries; returns how many there are. */
int64_t ksmpy_shares(ksmpy_engine *engine, struct ksmpy_share *out, int64_t max);

/* The node (index into options.node_ids) of each page of a region, from an injected topology. */
int ksmpy_set_nodes(ksmpy_engine *engine, uint32_t region, const uint8_t *nodes, uint64_t count);

/* Walks every structure; 0, or -EUCLEAN with a sentence in text (may be NULL). */
int ksmpy_check(ksmpy_engine *engine, char *text, size_t size);

/*
 * For tests: stores that are made from now on have this key, instead of one at random; 0: as ever.
 * 0x6b736d7079763031 is that of ksmpy_checksum().
 */
void ksmpy_fix_key(uint64_t seed);
/* The page checksum: one definition for all machines. length must be a multiple of 64. */
uint64_t ksmpy_checksum(const void *data, size_t length);
/* Reads length bytes as fast as this machine can: the yardstick for the checksum. */
uint64_t ksmpy_read_only(const void *data, size_t length);
