/* Run tasks on PyTorch's own OpenMP runtime, so that no second thread pool competes with it. Without one, or after a fork,
 * which GNU OpenMP does not survive, start threads for the call. */

#include "common.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

typedef void (*gomp_parallel_function)(void (*)(void *), void *, unsigned, unsigned);

static gomp_parallel_function gomp_parallel;
static atomic_int forked;

typedef struct {
    sia_task task;
    void *context;
    int64_t count;
    atomic_int_fast64_t next;
} job;

void sia_share_threads(void *function) { gomp_parallel = (gomp_parallel_function)function; }

static void work_on(void *argument)
{
    job *shared = argument;
    int64_t index;
    while ((index = atomic_fetch_add(&shared->next, 1)) < shared->count)
        shared->task(shared->context, index);
}

#if defined(_WIN32)
static void work_on_new_threads(job *shared, int threads)
{
    (void)threads;
    work_on(shared);
}
#else
static void *work_on_thread(void *argument)
{
    work_on(argument);
    return NULL;
}

static void work_on_new_threads(job *shared, int threads)
{
    enum { MOST = 64 };
    pthread_t helper[MOST];
    int started = 0;
    while (started < threads - 1 && started < MOST && !pthread_create(&helper[started], NULL, work_on_thread, shared))
        started++;
    work_on(shared);
    while (started > 0)
        pthread_join(helper[--started], NULL);
}

static void mark_forked(void) { atomic_store(&forked, 1); }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, mark_forked); }
#endif

void sia_parallel_for(int64_t count, int threads, sia_task task, void *context)
{
    job shared = {task, context, count, 0};
    if (threads > count)
        threads = (int)count;
    if (threads <= 1)
        work_on(&shared);
    else if (gomp_parallel && !atomic_load(&forked))
        gomp_parallel(work_on, &shared, (unsigned)threads, 0);
    else
        work_on_new_threads(&shared, threads);
}
