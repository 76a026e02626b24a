// SPDX-License-Identifier: Apache-2.0
#include "distributed/mesh.h"

#include <gtest/gtest.h>

#include "distributed/threads.h"

namespace fovea::distributed {
namespace {

// The world's ranks in a group, in its order.
std::vector<int64_t> members(const Communicator& group, int rank) {
  const Tensor all = Tensor::empty({group.size()}, Dtype::i64);
  group.all_gather(all, Tensor::from(std::vector<int64_t>{rank}, {1})).wait();
  return all.to_vector<int64_t>();
}

TEST(Mesh, UlyssesIsFastestThenRingThenData) {
  run_ranks(12, [](const Communicator& world) {
    const Mesh mesh(world, {2, 3, 2});
    const auto [data, ring, ulysses] = mesh.place();
    const int rank = world.rank();
    EXPECT_EQ((data * 3 + ring) * 2 + ulysses, rank);
    EXPECT_EQ(mesh.ulysses().rank(), ulysses);
    EXPECT_EQ(mesh.ring().rank(), ring);
    EXPECT_EQ(mesh.data().rank(), data);
    EXPECT_EQ(mesh.context().rank(), ring * 2 + ulysses);
    EXPECT_EQ(mesh.all().rank(), rank);
    EXPECT_EQ(mesh.all().size(), 12);
    if (rank != 9) {
      for (const Communicator* group :
           {&mesh.ulysses(), &mesh.ring(), &mesh.data(), &mesh.context()})
        members(*group, rank);
      return;
    }
    using Members = std::vector<int64_t>;
    EXPECT_EQ(members(mesh.ulysses(), rank), (Members{8, 9}));
    EXPECT_EQ(members(mesh.ring(), rank), (Members{7, 9, 11}));
    EXPECT_EQ(members(mesh.data(), rank), (Members{3, 9}));
    EXPECT_EQ(members(mesh.context(), rank), (Members{6, 7, 8, 9, 10, 11}));
  });
}

TEST(Mesh, SizesThatAreNotTheRanksAreRefused) {
  const auto what = [](const MeshSizes& sizes) -> std::string {
    try {
      const Mesh mesh(Communicator(), sizes);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(
      what({2, 3, 1}),
      "mesh: data 2 x ring 3 x ulysses 1 is 6 ranks, but the job has 1; mesh.data, mesh.ring and "
      "mesh.ulysses divide it");
  EXPECT_EQ(what({0, 1, 1}), "mesh: expected sizes of at least 1, found data 0, ring 1, ulysses 1");
  EXPECT_EQ(what({1, 1, 1}), "");
}

}  // namespace
}  // namespace fovea::distributed
