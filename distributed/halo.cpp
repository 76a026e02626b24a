// SPDX-License-Identifier: Apache-2.0
#include "distributed/halo.h"

#include "core/ops/elementwise.h"

namespace fovea::distributed {
namespace {

// Tokens of the sequence.
struct Range {
  int64_t begin, end;
  int64_t length() const { return std::max<int64_t>(0, end - begin); }
};

class Halo {
 public:
  Halo(int axis, int64_t left, const Shards& shards, const Communicator& comm, Edge edge)
      : axis_(axis), left_(left), shards_(shards), comm_(comm), edge_(edge) {
    FOVEA_CHECK(left >= 0, "halo: expected 0 tokens or more, found ", left);
  }

  Tensor forward(const Tensor& x) const {
    const int64_t n = x.dim(axis_);
    shards_.check("halo", comm_, n);
    const int64_t before = borrowed(comm_.rank()).length();
    const int64_t pad = edge_ == Edge::zeros ? left_ - before : 0;
    Shape shape = x.shape();
    shape[axis_] = pad + before + n;
    const Tensor out = Tensor::empty(shape, x.dtype(), x.device());
    out.slice(axis_, 0, pad).zero_();
    out.slice(axis_, pad + before, pad + before + n).copy_(x);

    const Pieces lent(*this, x, true), received(*this, x, false);
    lent.each([&](int, const Range& at, const Tensor& piece) {
      piece.copy_(x.slice(axis_, at.begin, at.end));
    });
    received.from(lent, comm_);
    received.each([&](int, const Range& at, const Tensor& piece) {
      out.slice(axis_, pad + at.begin, pad + at.end).copy_(piece);
    });
    return out;
  }

  Tensor backward(const Tensor& dout, int64_t n) const {
    const int64_t before = dout.dim(axis_) - n, own = borrowed(comm_.rank()).length();
    const Pieces received(*this, dout, false), lent(*this, dout, true);
    received.each([&](int, const Range& at, const Tensor& piece) {
      piece.copy_(dout.slice(axis_, before - own + at.begin, before - own + at.end));
    });
    lent.from(received, comm_);
    // Sums of more than two terms are rounded once.
    const Tensor mine = dout.slice(axis_, before, before + n);
    const bool wide = dout.dtype() == Dtype::bf16 && lent.count() > 1;
    const Tensor dx = wide ? mine.to(Dtype::f32) : mine.clone();
    lent.each([&](int, const Range& at, const Tensor& piece) {
      axpy_(dx.slice(axis_, at.begin, at.end), 1.0, piece);
    });
    return dx.to(dout.dtype());
  }

 private:
  // What a rank borrows.
  Range borrowed(int rank) const {
    const int64_t begin = shards_.begin(rank);
    return {shards_.length(rank) == 0 ? begin : std::max<int64_t>(0, begin - left_), begin};
  }
  Range overlap(const Range& a, int rank) const {
    return {std::max(a.begin, shards_.begin(rank)), std::min(a.end, shards_.end(rank))};
  }

  // One buffer with a piece for each rank: what this rank lends it, in tokens of its shard; or what
  // it borrows from it, in tokens from its first borrowed one.
  class Pieces {
   public:
    Pieces(const Halo& halo, const Tensor& like, bool lends)
        : axis_(halo.axis_), shape_(like.shape()) {
      const int rank = halo.comm_.rank();
      const Range mine = halo.borrowed(rank);
      shape_[axis_] = 1;
      int64_t total = 0;
      for (int r = 0; r < halo.comm_.size(); ++r) {
        const Range tokens = lends ? halo.overlap(halo.borrowed(r), rank) : halo.overlap(mine, r);
        const int64_t first = lends ? halo.shards_.begin(rank) : mine.begin;
        ranges_.push_back({tokens.begin - first, tokens.end - first});
        counts_.push_back(tokens.length() * shape_.numel());
        total += counts_.back();
      }
      buffer_ = Tensor::empty({total}, like.dtype(), like.device());
    }

    int64_t count() const {
      return std::count_if(counts_.begin(), counts_.end(), [](int64_t n) { return n > 0; });
    }
    // visit(rank, range, piece [..., range, ...]) for those that hold tokens, by rank.
    template <typename Visit>
    void each(const Visit& visit) const {
      int64_t at = 0;
      for (size_t r = 0; r < counts_.size(); at += counts_[r++]) {
        if (counts_[r] == 0) continue;
        Shape shape = shape_;
        shape[axis_] = ranges_[r].length();
        visit(static_cast<int>(r), ranges_[r], buffer_.slice(0, at, at + counts_[r]).view(shape));
      }
    }
    void from(const Pieces& other, const Communicator& comm) const {
      comm.all_to_all_v(buffer_, counts_, other.buffer_, other.counts_).wait();
    }

   private:
    int axis_;
    Shape shape_;  // of one token
    std::vector<Range> ranges_;
    std::vector<int64_t> counts_;  // elements
    Tensor buffer_;
  };

  const int axis_;
  const int64_t left_;
  const Shards shards_;
  const Communicator comm_;
  const Edge edge_;
};

class HaloFn final : public Function {
 public:
  explicit HaloFn(const Halo& halo, int axis) : halo_(halo), axis_(axis) {}
  const char* name() const override { return "halo"; }
  Tensor forward(const Tensor& x) {
    n_ = x.dim(axis_);
    return halo_.forward(x);
  }
  Tensors backward(const Tensors& dout) override { return {halo_.backward(dout[0], n_)}; }

 private:
  const Halo halo_;
  const int axis_;
  int64_t n_ = 0;
};

}  // namespace

Variable halo(const Variable& x, int axis, int64_t left, const Shards& shards,
              const Communicator& comm, Edge edge) {
  const int wrapped = x.shape().wrap(axis);
  return record(make<HaloFn>(Halo(wrapped, left, shards, comm, edge), wrapped), x);
}

Tensor halo(const Tensor& x, int axis, int64_t left, const Shards& shards, const Communicator& comm,
            Edge edge) {
  return Halo(x.shape().wrap(axis), left, shards, comm, edge).forward(x);
}

}  // namespace fovea::distributed
