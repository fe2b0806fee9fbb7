// A team of threads that stays awake within one call and sleeps between calls.
//
// There is no barrier: all threads run the same phases, but a phase ends when its items are done, and whoever comes late skips
// to the phase the others are in. So a thread that the system has stopped beside other busy processes holds up the item it is at
// and nothing else. OpenMP's barriers wait for everybody, hundreds of times a step.
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
            jobs_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    // One thread's view of the team. Thread 0 leads: it never skips, and opens each phase when the one before is done.
    struct Worker {
        Team& team;
        const int id;
        uint32_t phase;
        uint64_t ticket = 0;  // an item already taken, of this phase or a later one
        bool holds = false;

        // Whether the next phase goes on without this thread: what it would make ready for itself is not needed.
        bool late() const { return holds && phase_of(ticket) != phase; }

        // Calls work(i) for each i below total, the next to whoever is free; all are done when the leader returns.
        template <class Work>
        void each(int total, Work&& work) {
            while (take() && int(uint32_t(ticket)) < total) {
                work(int(uint32_t(ticket)));
                holds = false;
                team.done_.fetch_add(1, std::memory_order_acq_rel);
            }
            if (phase_of(ticket) == phase) {  // there was no item left
                holds = false;
                if (id == 0) team.next_phase(phase, total);
                else for (int spins = 0; phase_of(team.ticket_.load(std::memory_order_acquire)) == phase;) rest(spins);
            }
            ++phase;
        }

      private:
        bool take() {  // true where the ticket is of this phase
            if (!holds) ticket = team.ticket_.fetch_add(1, std::memory_order_acq_rel);
            holds = true;
            return phase_of(ticket) == phase;
        }
    };

    void run(const std::function<void(Worker&)>& job) {
        uint32_t phase = phase_of(ticket_.load(std::memory_order_relaxed));
        ticket_.store(uint64_t(phase) << 32, std::memory_order_relaxed);  // latecomers took some after the last phase
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            first_phase_ = phase;
            jobs_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        Worker worker{*this, 0, phase};
        job(worker);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = nullptr;  // who wakes now has missed it
        }
        for (int spins = 0; busy_.load(std::memory_order_acquire);) rest(spins);
    }

    const int size;

  private:
    static constexpr int AWAKE = 1000, PATIENCE = 2000;  // pauses, of about 20 ns each

    static uint32_t phase_of(uint64_t ticket) { return uint32_t(ticket >> 32); }

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

    void next_phase(uint32_t phase, int total) {
        for (int spins = 0; done_.load(std::memory_order_acquire) < total;) rest(spins);
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(uint64_t(phase + 1) << 32, std::memory_order_release);
    }

    void serve(int id) {
        for (unsigned seen = 0;;) {
            const std::function<void(Worker&)>* job;
            uint32_t phase;
            // The head's product follows a step within microseconds: not worth a sleep.
            for (int spins = 0; spins < AWAKE && jobs_.load(std::memory_order_acquire) == seen;) rest(spins);
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return jobs_.load(std::memory_order_relaxed) != seen; });
                if (closing_) return;
                seen = jobs_.load(std::memory_order_relaxed);
                job = job_;
                phase = first_phase_;
                if (!job) continue;
                busy_.fetch_add(1, std::memory_order_relaxed);
            }
            Worker worker{*this, id, phase};
            (*job)(worker);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    alignas(64) std::atomic<uint64_t> ticket_{0};  // phase, then the next item of it
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<int> busy_{0};
    std::atomic<unsigned> jobs_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(Worker&)>* job_ = nullptr;
    uint32_t first_phase_ = 0;
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
