// SPDX-License-Identifier: Apache-2.0
// Shared memory, word by word and, where the bytes of a word differ, byte by byte: who wrote it,
// who reads it, and whether they have met in between.
#include <cstring>

#include "core/interpreter/async.h"

namespace fovea::interpreted {
namespace {
constexpr size_t kWord = 4;
}

Span& dynamic_span() { return thread().block->dynamic_span(); }

void prepare(Span& span, std::byte* storage, size_t bytes, const char* name) {
  span.begin = storage;
  span.bytes = bytes;
  span.name = name;
  span.words.assign((bytes + kWord - 1) / kWord, Shadow{});
  span.parts.clear();
}

namespace {

std::string element(const Span& span, const std::byte* at, size_t bytes) {
  const auto offset = at - span.begin;
  return concat("shared memory \"", span.name, "\", byte ", offset, " to ",
                offset + static_cast<ptrdiff_t>(bytes), " of ", span.bytes);
}

size_t inside(const Span& span, const std::byte* at, size_t bytes, const char* verb,
              const Where& where) {
  const auto offset = at - span.begin;
  if (offset < 0 || static_cast<size_t>(offset) + bytes > span.bytes)
    fault(concat(verb, " outside ", element(span, at, bytes)), where);
  if (reinterpret_cast<uintptr_t>(at) % std::min<size_t>(bytes, 16) != 0 &&
      (bytes & (bytes - 1)) == 0)
    fault(concat(verb, " of ", bytes, " bytes that are not aligned: ", element(span, at, bytes)),
          where);
  return static_cast<size_t>(offset);
}

[[noreturn]] void fault_pending(const Span& span, const std::byte* at, size_t bytes,
                                const Shadow& s, const char* verb, const Where& where) {
  fault(concat(verb, s.bulk ? " what a copy of thread " : " what a copy_async of thread ",
               describe(thread().block->at(s.writer).index),
               s.bulk ? " brings, before the barrier_wait for it: "
                      : " brings, before its wait_copies: ",
               element(span, at, bytes)),
        where);
}

[[noreturn]] void fault_unfenced(const Span& span, const std::byte* at, size_t bytes,
                                 const Shadow& s, const char* verb, const Where& where) {
  fault(concat(verb, " what thread ", describe(thread().block->at(s.writer).index),
               " wrote, with no fence_async() by it and a meeting in between: ",
               element(span, at, bytes)),
        where);
}

// f(shadow) for each word of the bytes, or for each byte of those that are covered in part.
template <typename F>
void for_shadows(Span& span, size_t offset, size_t bytes, F f) {
  const size_t end = offset + bytes;
  for (size_t w = offset / kWord; w * kWord < end; ++w) {
    const size_t from = std::max(offset, w * kWord), to = std::min(end, (w + 1) * kWord);
    Shadow& word = span.words[w];
    if (to - from == kWord && !word.split) {
      f(word);
      continue;
    }
    if (span.parts.empty()) span.parts.resize(span.words.size() * kWord);
    Shadow* parts = &span.parts[w * kWord];
    if (!word.split) {
      std::fill(parts, parts + kWord, word);
      word.split = true;
    }
    for (size_t i = from; i < to; ++i) f(parts[i - w * kWord]);
  }
}

// Whether accesses are before what t does now; neighbours mostly have the same answer.
class Before {
 public:
  explicit Before(const Thread& t) : t_(t) {}
  bool operator()(unsigned other, uint32_t clock) {
    if (known_ && other == other_ && clock == clock_) return true;
    if (!t_.block->ordered(t_, other, clock)) return false;
    known_ = true;
    other_ = other;
    clock_ = clock;
    return true;
  }

 private:
  const Thread& t_;
  bool known_ = false;
  unsigned other_ = 0;
  uint32_t clock_ = 0;
};

// Of a thread at a clock, as t learns of it.
void remember_read(Shadow& s, const Thread& t, uint16_t reader, uint32_t clock) {
  if (!s.read || t.block->ordered(t, s.reader, s.read_clock)) {
    s.read = true;
    s.reader = reader;
    s.read_clock = clock;
  } else {
    s.read_twice = true;
    s.last_reader = reader;
    s.last_clock = clock;
  }
}

}  // namespace

void check_shared_read(Span& span, const std::byte* at, size_t bytes, const Where& where,
                       bool atomic) {
  const size_t offset = inside(span, at, bytes, "reads", where);
  const Thread& t = thread();
  const Block& block = *t.block;
  const auto id = static_cast<uint16_t>(t.id);
  for_shadows(span, offset, bytes, [&](Shadow& s) {
    if (s.block != block.serial())
      fault(concat("reads what was never written: ", element(span, at, bytes)), where);
    if (s.pending) fault_pending(span, at, bytes, s, "reads", where);
    if (s.barrier) fault(concat("reads a barrier: ", element(span, at, bytes)), where);
    if (atomic && s.atomic) return;
    if (!block.ordered(t, s.writer, s.write_clock))
      fault(concat("reads what thread ", describe(block.at(s.writer).index),
                   " writes with no barrier between: ", element(span, at, bytes)),
            where);
    remember_read(s, t, id, t.clock);
  });
}

void check_shared_write(Span& span, const std::byte* at, size_t bytes, const Where& where,
                        Write kind) {
  const size_t offset = inside(span, at, bytes, "writes", where);
  const Thread& t = thread();
  const Block& block = *t.block;
  const auto read_by = [&](unsigned reader) {
    fault(concat("writes where thread ", describe(block.at(reader).index),
                 " reads, with no barrier between: ", element(span, at, bytes)),
          where);
  };
  Shadow now;
  now.block = block.serial();
  now.writer = static_cast<uint16_t>(t.id);
  now.write_clock = t.clock;
  now.atomic = kind == Write::atomic;
  now.pending = kind == Write::copy_async || kind == Write::bulk;
  now.bulk = kind == Write::bulk;
  // Its words, in registers: a struct of single bits would be put together again for each copy.
  std::array<uint64_t, sizeof(Shadow) / 8> words;
  static_assert(sizeof words == sizeof(Shadow));
  std::memcpy(words.data(), &now, sizeof now);
  const auto put = [&words](Shadow& s) {
    std::memcpy(static_cast<void*>(&s), words.data(), sizeof s);
  };
  Before written(t), read(t), read_last(t);
  for_shadows(span, offset, bytes, [&](Shadow& s) {
    if (s.block == block.serial()) {
      if (s.pending)
        fault(
            concat(
                s.bulk ? "writes where a copy of thread " : "writes where a copy_async of thread ",
                describe(block.at(s.writer).index), " is under way: ", element(span, at, bytes)),
            where);
      if (s.reading > 0)
        fault(concat("writes what ", t.block->async().reader_of(at, bytes), ": ",
                     element(span, at, bytes)),
              where);
      if (s.barrier) fault(concat("writes over a barrier: ", element(span, at, bytes)), where);
      if (!(kind == Write::atomic && s.atomic) && !written(s.writer, s.write_clock))
        fault(concat("writes where thread ", describe(block.at(s.writer).index),
                     " writes too, with no barrier between: ", element(span, at, bytes)),
              where);
      if (kind == Write::bulk && !s.bulk && !t.block->async().visible(t, s.writer, s.write_clock))
        fault_unfenced(span, at, bytes, s, "a copy writes over", where);
      if (s.read && !read(s.reader, s.read_clock)) read_by(s.reader);
      if (s.read_twice && !read_last(s.last_reader, s.last_clock)) read_by(s.last_reader);
    }
    put(s);
  });
  // A word that one access wrote is whole again.
  for (size_t w = (offset + kWord - 1) / kWord; (w + 1) * kWord <= offset + bytes; ++w)
    put(span.words[w]);
}

void finish_copies(int left) {
  Thread& t = thread();
  size_t kept = 0;
  for (const Thread::Copy& copy : t.copies) {
    if (copy.group >= t.copy_group - left) {
      t.copies[kept++] = copy;
      continue;
    }
    const auto offset = static_cast<size_t>(copy.to - copy.span->begin);
    for_shadows(*copy.span, offset, copy.bytes + copy.zeros, [&](Shadow& s) {
      s.pending = false;
      s.write_clock = t.clock;
    });
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(copy.to + copy.bytes, 0, copy.zeros);
  }
  t.copies.resize(kept);
}

// ---- copies and products under way --------------------------------------------------------------

void begin_async_read(Span& span, const std::byte* at, size_t bytes, const char* verb,
                      const Where& where) {
  const size_t offset = inside(span, at, bytes, verb, where);
  const Thread& t = thread();
  const Block& block = *t.block;
  const Async& async = t.block->async();
  for_shadows(span, offset, bytes, [&](Shadow& s) {
    if (s.block != block.serial())
      fault(concat(verb, " what was never written: ", element(span, at, bytes)), where);
    if (s.pending) fault_pending(span, at, bytes, s, verb, where);
    if (s.barrier) fault(concat(verb, " a barrier: ", element(span, at, bytes)), where);
    if (!block.ordered(t, s.writer, s.write_clock))
      fault(concat(verb, " what thread ", describe(block.at(s.writer).index),
                   " writes with no barrier between: ", element(span, at, bytes)),
            where);
    if (!s.bulk && !async.visible(t, s.writer, s.write_clock))
      fault_unfenced(span, at, bytes, s, verb, where);
    ++s.reading;
  });
}

void end_async_read(Span& span, const std::byte* at, size_t bytes, int reader, uint32_t clock) {
  const Thread& t = thread();
  for_shadows(span, static_cast<size_t>(at - span.begin), bytes, [&](Shadow& s) {
    --s.reading;
    remember_read(s, t, static_cast<uint16_t>(reader), clock);
  });
}

void end_async_write(Span& span, const std::byte* at, size_t bytes) {
  for_shadows(span, static_cast<size_t>(at - span.begin), bytes,
              [&](Shadow& s) { s.pending = false; });
}

void mark_barrier(Span& span, const std::byte* at, size_t bytes) {
  for_shadows(span, static_cast<size_t>(at - span.begin), bytes,
              [&](Shadow& s) { s.barrier = true; });
}

}  // namespace fovea::interpreted
