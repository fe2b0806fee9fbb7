// A team of threads that stays awake within one call: it meets at barriers that spin, then yield, and sleeps between calls.
// OpenMP's own barriers may be told to sleep (OMP_WAIT_POLICY=passive), which costs more than the products between them.
#pragma once
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Team {
  public:
    explicit Team(int size) : size(size) {
        for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { serve(i); });
    }
    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            closing_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    // One thread's view of the team.
    struct Worker {
        Team& team;
        int id;
        // Calls work(i) for each i below total, the next `grain` to whoever is free, and returns when all are done.
        template <class Work>
        void each(int total, int grain, Work&& work) {
            for (int i; (i = team.next_.fetch_add(grain, std::memory_order_relaxed)) < total;)
                for (int j = i, end = i + grain < total ? i + grain : total; j < end; ++j) work(j);
            team.barrier();
        }
    };

    void run(const std::function<void(Worker&)>& job) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            busy_.store(size - 1, std::memory_order_relaxed);
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        Worker worker{*this, 0};
        job(worker);
        for (int spins = 0; busy_.load(std::memory_order_acquire);) rest(spins);
    }

    const int size;

  private:
    static constexpr int AWAKE = 1000, PATIENCE = 2000;  // pauses, of about 20 ns each

    static void rest(int& spins) {
        if (++spins < PATIENCE) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        } else {
            std::this_thread::yield();
        }
    }

    void barrier() {
        unsigned round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            next_.store(0, std::memory_order_relaxed);  // nobody counts between arriving and leaving
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
        } else {
            for (int spins = 0; round_.load(std::memory_order_acquire) == round;) rest(spins);
        }
    }

    void serve(int id) {
        for (unsigned seen = 0;;) {
            const std::function<void(Worker&)>* job;
            // The head's product follows a step within microseconds: not worth a sleep.
            for (int spins = 0; spins < AWAKE && generation_.load(std::memory_order_acquire) == seen;) rest(spins);
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return closing_ || generation_ != seen; });
                if (closing_) return;
                seen = generation_;
                job = job_;
            }
            Worker worker{*this, id};
            (*job)(worker);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
    alignas(64) std::atomic<int> busy_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(Worker&)>* job_ = nullptr;
    std::atomic<unsigned> generation_{0};
    bool closing_ = false;
    std::vector<std::thread> threads_;
};

// The team of this process; its mutex is held for a whole call. After a fork the parent's threads are gone, not joined.
inline Team& team_of(int size) {
    static Team* team = nullptr;
    static pid_t owner = 0;
    if (team && (owner != getpid() || team->size != size)) {
        if (owner == getpid()) delete team;
        team = nullptr;
    }
    if (!team) {
        team = new Team(size);
        owner = getpid();
    }
    return *team;
}
