// SPDX-License-Identifier: Apache-2.0
#pragma once
// Asynchronous operations of one communicator: a thread that does them in order.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "distributed/communicator.h"

namespace fovea::distributed {

class Queue {
 public:
  Queue() = default;
  // Finishes what was handed in.
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Nothing is under way.
  bool idle();
  // finish runs on the thread that first waits for the result, after the work; waited receives the
  // seconds it waited.
  Work push(std::function<void()> work, std::function<void()> finish,
            std::function<void(double)> waited);

 private:
  class Task;
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Task>> tasks_;  // the first is being done
  bool closing_ = false;
  std::thread thread_;  // started with the first task
};

}  // namespace fovea::distributed
