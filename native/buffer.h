// Memory for weights, activations and cache blocks: aligned, zeroed, in huge pages where it is large.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "layout.h"

namespace kogpt {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes) : Buffer(bytes, kUnset) { std::memset(data_, 0, bytes); }

  // Not zeroed: for what is written whole.
  enum Unset { kUnset };
  Buffer(std::size_t bytes, Unset) : bytes_(bytes) {
    if (bytes == 0) return;
    const std::size_t align = huge(bytes) ? kHuge : kAlign;
    void* data = nullptr;
    if (posix_memalign(&data, align, bytes) != 0) throw std::bad_alloc();
    data_ = static_cast<unsigned char*>(data);
#if defined(__linux__)
    // 4 KB pages cost a tenth to a fifth of the read bandwidth; what does not fill a huge page goes without.
    // Advice only: an old kernel may decline.
    if (align == kHuge) madvise(data_, bytes / kHuge * kHuge, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  // Whether so many bytes get huge pages where the system has them.
  static bool huge(std::size_t bytes) {
#if defined(__linux__)
    return bytes >= kHuge;
#else
    return bytes != bytes;
#endif
  }

  unsigned char* data() const { return data_; }
  std::size_t size() const { return bytes_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

  // At least `bytes`, zeroed when it has to grow.
  void reserve(std::size_t bytes) {
    if (bytes > bytes_) *this = Buffer(bytes);
  }

 private:
  static constexpr std::size_t kHuge = std::size_t{2} << 20;

  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  unsigned char* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace kogpt
