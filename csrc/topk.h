// The parts of masked_topk: what they share. masked_topk.cpp runs them in order; topk_sample.cpp brackets the thresholds,
// topk_select.cpp finds them, topk_apply.cpp clears.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernels.h"
#include "masked_topk.h"
#include "select.h"
#include "strided.h"

namespace lc {

constexpr int64_t kUnsampled = 8192;  // entries up to which selecting among all beats sampling
constexpr int64_t kAllTies = std::numeric_limits<int64_t>::max();

struct Chunk {
  int64_t weight = 0, group = 0, begin = 0, size = 0;
  int64_t kept = 0, below = 0, inside = 0;  // `inside` magnitudes lie in the group's range
  int64_t ties = 0;                         // to clear
  char* found = nullptr;                    // the magnitudes inside, in order, in the weight's own width
  bool nan = false, overflow = false;
};

struct Group {
  int64_t k = 0, first_chunk = 0, last_chunk = 0, size = 0, kept = 0;
  int64_t longest = 0;  // entries of the longest chunk
  uint32_t grain = 0;   // every magnitude is a multiple of it
  Bracket bracket;
  int64_t below = 0, inside = 0;
  uint32_t threshold = 0;
};

struct Worker {
  std::unique_ptr<char[]> found;
  int64_t used = 0;
  std::unique_ptr<uint32_t[]> keys;  // kChunk + 1
  alignas(64) uint32_t piece[kPiece];
};

class Topk {
 public:
  Topk(std::vector<Weight>& weights, const std::vector<int64_t>& k, bool global, int threads);
  TopkResult run(uint32_t* thresholds);

 private:
  const Weight& weight_of(const Chunk& chunk) const { return weights_[chunk.weight]; }

  template <class U, class Body>
  void pieces(const Chunk& chunk, int worker, const Body& body) {
    for_pieces(weight_of(chunk), chunk.begin, chunk.size, reinterpret_cast<U*>(workers_[worker].piece), body);
  }

  // topk_sample.cpp
  int64_t draw(const Group& group, int64_t begin, int64_t end, uint32_t* keys) const;
  void bracket_small(Group& group, uint32_t* keys) const;
  void bracket_all(const std::vector<int64_t>& large);

  // topk_select.cpp
  enum class Outcome : char { selected, overflowed, missed };
  void solve_small(Group& group, int worker);
  void solve_large(const std::vector<int64_t>& large);
  std::vector<Outcome> scan_and_select(const std::vector<int64_t>& pending);
  void scan(Chunk& chunk, int worker, bool collect);
  template <class U>
  void scan_as(Chunk& chunk, int worker, bool collect);
  template <class Body>
  void found(const Chunk& chunk, const Body& body) const;
  int64_t found_equal(const Chunk& chunk, uint32_t threshold) const;
  void sum_up(Group& group) const;
  bool select(Group& group, int worker, int threads);
  void count_all(Group& group);
  void settle(Group& group, uint32_t threshold, int64_t rank, int64_t equal, bool counted);

  // topk_apply.cpp
  void apply(const Chunk& chunk, int worker);

  std::vector<Weight>& weights_;
  int threads_;
  int64_t capacity_;  // bytes that each worker may collect
  std::vector<Group> groups_;
  std::vector<Chunk> chunks_;
  std::vector<Worker> workers_;
};

}  // namespace lc
