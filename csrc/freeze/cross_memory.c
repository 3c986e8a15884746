#include "freeze/cross_memory.h"

#include <sys/syscall.h>

#include "freeze/attempts.h"

#define CUT_AT_MOST 16 /* times, as the other process's memory may be what ends it, too */

typedef ssize_t copy_between(pid_t pid, const struct iovec *here, unsigned long count,
                             const struct iovec *there, unsigned long there_count,
                             unsigned long flags);

/* All of it, as to copy a part once more does no harm. */
static ssize_t copy_again(copy_between *copy, pid_t pid, const struct iovec *here,
                          unsigned long count, const struct iovec *there, unsigned long there_count,
                          unsigned long flags)
{
    struct attempt now = attempt_begin();
    ssize_t got;
    for (int cuts = 0;; cuts++) {
        MAKE(got, attempt_is_again(&now), copy(pid, here, count, there, there_count, flags));
        if (got < 0 || (size_t)got == bytes_in(here, (int)count) ||
            (size_t)got == bytes_in(there, (int)there_count) || cuts == CUT_AT_MOST ||
            !attempt_is_cut(&now))
            return got;
    }
}

ssize_t cross_memory_process_vm_readv(pid_t pid, const struct iovec *here, unsigned long count,
                                      const struct iovec *there, unsigned long there_count,
                                      unsigned long flags)
{
    return copy_again(process_vm_readv, pid, here, count, there, there_count, flags);
}

ssize_t cross_memory_process_vm_writev(pid_t pid, const struct iovec *here, unsigned long count,
                                       const struct iovec *there, unsigned long there_count,
                                       unsigned long flags)
{
    return copy_again(process_vm_writev, pid, here, count, there, there_count, flags);
}

/* ---- by their numbers ---- */

#ifdef CROSS_MEMORY_BY_NUMBER
long cross_memory_by_number(long number, pid_t pid, const struct iovec *here, unsigned long count,
                            const struct iovec *there, unsigned long there_count,
                            unsigned long flags)
{
    copy_between *copy = number == SYS_process_vm_readv ? process_vm_readv : process_vm_writev;
    return copy_again(copy, pid, here, count, there, there_count, flags);
}

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define IF_IT_IS(call) "    cmpq $" TEXT(SYS_##call) ", %rdi\n    je cross_memory_by_number\n"

#define GO_ON "    jmp syscall@PLT\n"

/*
 * In assembler, since nothing else promises to jump where it could call.  A function with a variable
 * number of arguments finds them where one with as many fixed ones does (psABI of x86-64), and all
 * that are needed are integers.
 */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl cross_memory_syscall\n"
        ".hidden cross_memory_syscall\n"
        ".type cross_memory_syscall, @function\n"
        "cross_memory_syscall:\n"
        "    .cfi_startproc\n"
        "    endbr64\n" /* it is called by its address */
        IF_IT_IS(process_vm_readv) IF_IT_IS(process_vm_writev) GO_ON
        "    .cfi_endproc\n"
        ".size cross_memory_syscall, . - cross_memory_syscall\n");
#endif
