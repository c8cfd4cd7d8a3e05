// What the emulator tells ThreadSanitizer (-fsanitize=thread); in other builds, nothing.
//
// Each emulated thread is a thread to it, and what orders them is what orders a GPU's: a barrier of their block, the
// end of a launch, an atomicAdd after a __threadfence, a counter read before a __threadfence. Two that touch the same memory without such an order are
// reported, in whatever order they ran here. A shuffle orders no memory, and blocks of one launch have no order.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_read_range(void* at, size_t size);
void __tsan_write_range(void* at, size_t size);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif

namespace race_checks {

#ifdef __SANITIZE_THREAD__

constexpr bool kEnabled = true;
constexpr size_t kMaxThreads = 8000;  // of one launch: ThreadSanitizer has room for 8,128 or more

// While it lives, the current thread does the emulator's work, which is no access of a kernel. What it allocates is new
// to every thread.
struct Unseen {
  Unseen() { __tsan_ignore_thread_begin(); }
  ~Unseen() { __tsan_ignore_thread_end(); }
};

inline void* CurrentThread() { return __tsan_get_current_fiber(); }

// Comes right before the change of stacks. Not instrumented: its entry and its exit would count on different stacks.
__attribute__((no_sanitize("thread"))) inline void SwitchTo(void* thread) {
  constexpr unsigned kWithoutOrder = 1;
  __tsan_switch_to_fiber(thread, kWithoutOrder);
}

// What orders a launch with those before and after it. Threads of one launch are known apart until it ends; the next
// one takes them over, since making them anew takes longer than most launches.
class Launch {
 public:
  void Begins() {
    __tsan_release(&begin_);
    used_ = 0;
  }
  void* NewThread() {
    if (used_ == threads_.size()) threads_.push_back(__tsan_create_fiber(0));
    return threads_[used_++];
  }
  void ThreadBegins() { __tsan_acquire(&begin_); }
  void ThreadEnds() { __tsan_release(&end_); }
  void Ends() { __tsan_acquire(&end_); }

 private:
  std::vector<void*> threads_;
  size_t used_ = 0;
  char begin_ = 0;
  char end_ = 0;
};

// The barrier of one block. Two tokens take turns, since a thread may reach a barrier before others left the last one.
class Barrier {
 public:
  char* Arrive() {
    char* token = &tokens_[passed_ % 2];
    __tsan_release(token);
    return token;
  }
  void Leave(char* token) { __tsan_acquire(token); }
  void AllArrived() { ++passed_; }

 private:
  std::unique_ptr<char[]> tokens_{new char[2]};
  unsigned passed_ = 0;
};

// What was released at `token` comes before what this thread does next.
inline void Acquire(const void* token) { __tsan_acquire(const_cast<void*>(token)); }

inline void NoteRead(const void* at, size_t size) { __tsan_read_range(const_cast<void*>(at), size); }
inline void NoteWrite(void* at, size_t size) { __tsan_write_range(at, size); }

#else

constexpr bool kEnabled = false;
constexpr size_t kMaxThreads = ~size_t{0};

struct Unseen {
  Unseen() {}
};
inline void* CurrentThread() { return nullptr; }
inline void SwitchTo(void*) {}
struct Launch {
  void Begins() {}
  void* NewThread() { return nullptr; }
  void ThreadBegins() {}
  void ThreadEnds() {}
  void Ends() {}
};
struct Barrier {
  char* Arrive() { return nullptr; }
  void Leave(char*) {}
  void AllArrived() {}
};
inline void Acquire(const void*) {}
inline void NoteRead(const void*, size_t) {}
inline void NoteWrite(void*, size_t) {}

#endif

}  // namespace race_checks
