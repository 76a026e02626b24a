// SPDX-License-Identifier: Apache-2.0
// Shared memory, byte by byte: who wrote it, who reads it, and whether they have met in between.
#include <cstring>

#include "core/interpreter/block.h"

namespace fovea::interpreted {

Span& dynamic_span() { return thread().block->dynamic_span(); }

void prepare(Span& span, std::byte* storage, size_t bytes, const char* name) {
  span.begin = storage;
  span.bytes = bytes;
  span.name = name;
  span.shadow.assign(bytes, Shadow{});
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

}  // namespace

void check_shared_read(Span& span, const std::byte* at, size_t bytes, const Where& where,
                       bool atomic) {
  const size_t offset = inside(span, at, bytes, "reads", where);
  const Thread& t = thread();
  Block& block = *t.block;
  for (size_t i = offset; i < offset + bytes; ++i) {
    Shadow& s = span.shadow[i];
    if (s.block != block.serial() || !s.written)
      fault(concat("reads what was never written: ", element(span, at, bytes)), where);
    if (atomic && s.atomic) continue;
    if (!block.ordered(t, s.writer, s.write_clock, s.write_meetings))
      fault(concat("reads what thread ", describe(block.at(s.writer).index),
                   " writes with no barrier between: ", element(span, at, bytes)),
            where);
    // One reader is remembered, the first that the others' barriers do not cover.
    if (!s.read || block.ordered(t, s.reader, s.read_clock, s.read_meetings)) {
      s.read = true;
      s.reader = static_cast<uint16_t>(t.id);
      s.read_clock = block.clock(t);
      s.read_meetings = t.warp_meetings;
    }
  }
}

void check_shared_write(Span& span, const std::byte* at, size_t bytes, const Where& where,
                        bool atomic) {
  const size_t offset = inside(span, at, bytes, "writes", where);
  const Thread& t = thread();
  Block& block = *t.block;
  for (size_t i = offset; i < offset + bytes; ++i) {
    Shadow& s = span.shadow[i];
    if (s.block != block.serial()) s = Shadow{};
    if (s.written && !(atomic && s.atomic) &&
        !block.ordered(t, s.writer, s.write_clock, s.write_meetings))
      fault(concat("writes where thread ", describe(block.at(s.writer).index),
                   " writes too, with no barrier between: ", element(span, at, bytes)),
            where);
    if (s.read && !block.ordered(t, s.reader, s.read_clock, s.read_meetings))
      fault(concat("writes where thread ", describe(block.at(s.reader).index),
                   " reads, with no barrier between: ", element(span, at, bytes)),
            where);
    s.block = block.serial();
    s.written = true;
    s.read = false;
    s.atomic = atomic;
    s.writer = static_cast<uint16_t>(t.id);
    s.write_clock = block.clock(t);
    s.write_meetings = t.warp_meetings;
  }
}

void finish_copies(int left) {
  Thread& t = thread();
  size_t kept = 0;
  for (const Thread::Copy& copy : t.copies) {
    if (copy.group >= t.copy_group - left) {
      t.copies[kept++] = copy;
      continue;
    }
    check_shared_write(*copy.span, copy.to, copy.bytes + copy.zeros, copy.where);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(copy.to + copy.bytes, 0, copy.zeros);
  }
  t.copies.resize(kept);
}

}  // namespace fovea::interpreted
