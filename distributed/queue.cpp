// SPDX-License-Identifier: Apache-2.0
#include "distributed/queue.h"

#include <exception>

#include "core/parallel.h"
#include "distributed/transport.h"

namespace fovea::distributed {

class Queue::Task : public Work::State {
 public:
  Task(std::function<void()> work, std::function<void()> finish, std::function<void(double)> waited)
      : work_(std::move(work)), finish_(std::move(finish)), waited_(std::move(waited)) {}

  void run() {
    std::exception_ptr error;
    try {
      work_();
    } catch (...) {
      error = std::current_exception();
    }
    work_ = nullptr;  // and the tensors it holds
    const std::lock_guard lock(mutex_);
    error_ = error;
    done_ = true;
    changed_.notify_all();
  }

  void wait() override {
    const auto start = Clock::now();
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return done_; });
    }
    waited_(std::chrono::duration<double>(Clock::now() - start).count());
    if (error_) std::rethrow_exception(error_);
    if (finish_) finish_();
  }

  bool test() override {
    const std::lock_guard lock(mutex_);
    return done_;
  }

 private:
  std::function<void()> work_, finish_;
  std::function<void(double)> waited_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::exception_ptr error_;
};

Queue::~Queue() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

bool Queue::idle() {
  const std::lock_guard lock(mutex_);
  return tasks_.empty();
}

Work Queue::push(std::function<void()> work, std::function<void()> finish,
                 std::function<void(double)> waited) {
  auto task = std::make_shared<Task>(std::move(work), std::move(finish), std::move(waited));
  const std::lock_guard lock(mutex_);
  tasks_.push_back(task);
  if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
  changed_.notify_all();
  return Work(task);
}

void Queue::serve() {
  const SerialScope serial;  // the cores are the caller's, who goes on computing
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closing_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const std::shared_ptr<Task> task = tasks_.front();
    lock.unlock();
    task->run();
    lock.lock();
    tasks_.pop_front();
  }
}

}  // namespace fovea::distributed
