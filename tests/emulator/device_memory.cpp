#include "device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

#include "report.h"

namespace emulator {
namespace {

// Addresses are plenty: each is used once.
constexpr size_t kAddresses = size_t{1} << 42;
constexpr size_t kWord = 16;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

class Memory {
 public:
  Memory() {
    void* begin = mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) fail("the system gives no addresses for the device's memory");
    begin_ = next_ = static_cast<char*>(begin);
  }

  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t whole = round_up(bytes, page_);
    if (next_ + whole + page_ > begin_ + kAddresses) fail("the device has no addresses left");
    if (mprotect(next_, whole, PROT_READ | PROT_WRITE) != 0) fail("the device has no memory left");
    char* place = next_ + whole - round_up(bytes, kWord);
    std::memset(place, 0xff, bytes);
    sizes_[place] = {next_, whole};
    next_ += whole + page_;
    return place;
  }

  void release(void* place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(place);
    if (found == sizes_.end()) fail("memory is released that is none of the device's");
    madvise(found->second.begin, found->second.bytes, MADV_DONTNEED);
    mprotect(found->second.begin, found->second.bytes, PROT_NONE);
    sizes_.erase(found);
  }

  bool has(const void* place) const { return place >= begin_ && place < begin_ + kAddresses; }

 private:
  struct Pages {
    char* begin;
    size_t bytes;
  };

  const size_t page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  char* begin_;
  char* next_;
  std::map<void*, Pages> sizes_;
  std::mutex mutex_;
};

// Never destroyed: tensors of other static objects may live longer.
Memory& memory() {
  static Memory* const one = new Memory();
  return *one;
}

}  // namespace

void* take_device_memory(size_t bytes) { return memory().take(bytes); }
void release_device_memory(void* place) { memory().release(place); }
bool is_device_memory(const void* place) { return memory().has(place); }

}  // namespace emulator
