// Streams and runs of several threads at once; built with ThreadSanitizer.
#include "pyinv/stream.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace pyinv;

namespace {

constexpr int64_t kSize = 4;
constexpr std::chrono::milliseconds kWait{5};
std::atomic<int> failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED %s\n", what.c_str());
  ++failures;
}

// The squared distance of the latent to the image. Throws after some evaluations, if it should.
class Distance : public Objective {
 public:
  explicit Distance(int64_t fails_after = -1) : fails_after_(fails_after) {}
  int64_t latent_size() const override { return kSize; }
  int64_t image_size() const override { return kSize; }
  int64_t condition_size() const override { return 0; }
  std::unique_ptr<Evaluator> bind(const LaneBuffers& lanes) const override {
    return std::make_unique<Bound>(lanes, fails_after_);
  }

 private:
  class Bound : public Evaluator {
   public:
    Bound(const LaneBuffers& lanes, int64_t fails_after) : lanes_(lanes), left_(fails_after) {}
    void evaluate(int64_t first, int64_t count) override {
      if (left_ >= 0 && left_-- == 0) throw std::runtime_error("out of order");
      for (int64_t lane = first; lane < first + count; ++lane) {
        float sum = 0.0f;
        for (int64_t i = lane * kSize; i < (lane + 1) * kSize; ++i) {
          const float difference = lanes_.latent[i] - lanes_.image[i];
          sum += difference * difference / kSize;
          lanes_.gradient[i] = 2.0f * difference / kSize;
        }
        lanes_.loss[lane] = sum;
      }
    }

   private:
    const LaneBuffers lanes_;
    int64_t left_;
  };
  const int64_t fails_after_;
};

float value(uint64_t id, int64_t i) {
  return 0.3f * std::sin(static_cast<float>(id * kSize + static_cast<uint64_t>(i)));
}

Recipe recipe(int64_t max_steps, float tolerance) {
  Stage stage;
  stage.solver = {.kind = SolverKind::adam, .learning_rate = 0.05};
  stage.max_steps = max_steps;
  stage.loss_tolerance = tolerance;
  Recipe made;
  made.stages = {stage};
  return made;
}

// Puts targets one at a time; returns the ids by number, as far as this thread knows them.
void put(Stream& stream, uint64_t id, const std::atomic<bool>& over) {
  float image[kSize];
  for (int64_t i = 0; i < kSize; ++i) image[i] = value(id, i);
  Targets target;
  target.count = 1;
  target.image = image;
  target.id = &id;
  while (!over && stream.put(target, kWait) == 0) {
  }
}

struct Found {
  std::mutex mutex;
  std::map<int64_t, StreamResult> results;

  void take_all(Stream& stream) {
    while (const auto taken = stream.take(kWait)) {
      const std::lock_guard lock(mutex);
      for (const StreamResult& result : *taken) {
        check(results.emplace(result.number, result).second, "each target once");
      }
    }
  }
};

// Several threads put, take and cancel at once.
void test_many_threads() {
  constexpr int kPutters = 3, kEach = 200;
  const Distance distance;
  Stream stream({&distance}, Prior{}, recipe(200, 1e-6f), {.lanes = 8, .rows = 24});
  const std::atomic<bool> over = false;
  Found found;
  std::vector<std::thread> putters, others;
  for (int putter = 0; putter < kPutters; ++putter) {
    putters.emplace_back([&, putter] {
      for (int i = 0; i < kEach; ++i) {
        put(stream, static_cast<uint64_t>(putter * kEach + i), over);
      }
    });
  }
  for (int taker = 0; taker < 2; ++taker) others.emplace_back([&] { found.take_all(stream); });
  others.emplace_back([&] {
    for (int64_t number = 0; number < kPutters * kEach; number += 7) {
      stream.cancel(std::vector<int64_t>{number, number + 1});
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : putters) thread.join();
  stream.end();
  for (std::thread& thread : others) thread.join();
  check(found.results.size() == kPutters * kEach, "every target has a result");
  int converged = 0;
  for (const auto& [number, result] : found.results) {
    if (result.status != Status::converged_tolerance) {
      check(result.status == Status::cancelled, "others are cancelled");
      continue;
    }
    ++converged;
    check(result.loss <= 1e-6f && std::isfinite(result.latent[0]), "a loss at the tolerance");
  }
  check(converged > 0, "some are not cancelled");
}

// A stream is stopped from another thread, or destroyed, while targets are put and taken.
void test_stopping() {
  for (int turn = 0; turn < 20; ++turn) {
    const Distance distance;
    Stream stream({&distance}, Prior{}, recipe(1 << 30, 0.0f), {.lanes = 4, .rows = 8});
    std::atomic<bool> over = false;
    Found found;
    std::thread putter([&] {
      for (uint64_t id = 0; !over; ++id) put(stream, id, over);
    });
    std::thread taker([&] { found.take_all(stream); });
    std::this_thread::sleep_for(std::chrono::milliseconds(turn));
    std::thread stopper([&] { stream.stop(); });
    stream.stop();
    stopper.join();
    taker.join();
    over = true;
    putter.join();
    for (const auto& [number, result] : found.results) {
      check(result.status == Status::cancelled, "what was in a lane is cancelled");
    }
    check(!stream.take(kWait), "nothing is left");
  }
}

void test_a_failure() {
  const Distance distance(20);
  Stream stream({&distance}, Prior{}, recipe(10, 0.0f), {.lanes = 2, .rows = 4});
  std::atomic<bool> over = false;
  std::thread putter([&] {
    for (uint64_t id = 0; id < 100; ++id) put(stream, id, over);
  });
  Found found;
  std::string message;
  try {
    found.take_all(stream);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  over = true;
  putter.join();
  check(message == "out of order", "the run's error, got '" + message + "'");
  check(found.results.size() == 2, "what had finished");
}

// Threads invert against one objective. Another thread cancels the last of them, which never ends.
void test_runs_that_share_an_objective() {
  constexpr int64_t kRuns = 4, kCount = 20;
  const Distance distance;
  std::vector<float> images(kCount * kSize);
  std::vector<uint64_t> ids(kCount);
  for (size_t row = 0; row < kCount; ++row) {
    ids[row] = row;
    for (int64_t i = 0; i < kSize; ++i) images[row * kSize + size_t(i)] = value(row, i);
  }
  struct Made {
    std::vector<float> latent = std::vector<float>(kCount * kSize),
                       loss = std::vector<float>(kCount);
    std::vector<Status> status = std::vector<Status>(kCount);
    std::vector<int64_t> steps = std::vector<int64_t>(kCount);
    std::vector<int32_t> attempts = std::vector<int32_t>(kCount);
  };
  std::vector<Made> made(kRuns);
  std::atomic<bool> cancelled = false;
  std::vector<std::thread> threads;
  for (int64_t number = 0; number < kRuns; ++number) {
    threads.emplace_back([&, number] {
      const bool last = number == kRuns - 1;
      Made& mine = made[size_t(number)];
      Targets targets;
      targets.count = kCount;
      targets.image = images.data();
      targets.id = ids.data();
      RunOptions options;
      options.lanes = 3 + number;
      options.keep_going = [&](const Progress&) { return !last || !cancelled; };
      Results results;
      results.latent = mine.latent.data();
      results.loss = mine.loss.data();
      results.status = mine.status.data();
      results.steps = mine.steps.data();
      results.attempts = mine.attempts.data();
      const Recipe own = last ? recipe(1 << 30, 0.0f) : recipe(200, 1e-6f);
      const RunSummary summary = run({&distance}, Prior{}, own, targets, options, results);
      check(summary.cancelled == last, "only the last is cancelled");
    });
  }
  std::thread([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    cancelled = true;
  }).join();
  for (std::thread& thread : threads) thread.join();
  for (const Made& each : made) {
    const bool last = &each == &made.back();
    check(last || each.latent == made[0].latent, "the same latents in every thread");
    for (Status status : each.status) {
      check((status == Status::cancelled) == last, "each target's status is that of its run");
    }
  }
}

void test_order_and_room() {
  const Distance distance;
  Stream stream({&distance}, Prior{}, recipe(5, 0.0f), {.lanes = 1, .rows = 3});
  std::vector<float> images(5 * kSize);
  std::vector<uint64_t> ids = {0, 1, 2, 3, 4};
  Targets targets;
  targets.count = 5;
  targets.image = images.data();
  targets.id = ids.data();
  check(stream.put(targets, kWait) == 3, "as many as there is room for");
  stream.end();
  check(stream.put(targets, kWait) == 0, "none after the end");
  int64_t next = 0;
  while (const auto taken = stream.take(kWait)) {
    for (const StreamResult& result : *taken) check(result.number == next++, "one lane, in order");
  }
  check(next == 3, "all of them");
}

}  // namespace

int main() {
  test_many_threads();
  test_stopping();
  test_a_failure();
  test_order_and_room();
  test_runs_that_share_an_objective();
  std::printf(failures ? "%d failures\n" : "all well\n", failures.load());
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
