#pragma once

#include <cstdint>

namespace lc::plan {

constexpr int64_t kVector = 16;  // bytes that one thread of a GPU loads at once

}  // namespace lc::plan
