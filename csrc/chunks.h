#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace grawa {

struct Chunk {
  int64_t layer;
  int64_t begin;  // element within the layer
  int64_t size;
};

// How the elements of a list of layers are dealt to threads. The division depends on the sizes alone, never on the
// number of threads: partial results per chunk, added up in chunk order, are bitwise reproducible.
class ChunkMap {
 public:
  static constexpr int64_t kChunk = 16 * 1024;
  // Below this, waking the thread pool costs more than the work.
  static constexpr int64_t kSerial = 2 * kChunk;

  explicit ChunkMap(const std::vector<int64_t>& numels) {
    tasks_.push_back(0);
    int64_t task_size = 0;
    for (int64_t layer = 0; layer < static_cast<int64_t>(numels.size()); ++layer) {
      offsets_.push_back(numel_);
      first_chunk_.push_back(chunks());
      for (int64_t begin = 0; begin < numels[layer]; begin += kChunk) {
        const int64_t size = std::min(kChunk, numels[layer] - begin);
        if (task_size > 0 && task_size + size > kChunk) {
          tasks_.push_back(chunks());
          task_size = 0;
        }
        chunks_.push_back({layer, begin, size});
        task_size += size;
      }
      numel_ += numels[layer];
    }
    if (task_size > 0) tasks_.push_back(chunks());
    offsets_.push_back(numel_);
    first_chunk_.push_back(chunks());
  }

  int64_t layers() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t chunks() const { return static_cast<int64_t>(chunks_.size()); }
  int64_t numel() const { return numel_; }
  int64_t numel(int64_t layer) const { return offsets_[layer + 1] - offsets_[layer]; }
  int64_t offset(int64_t layer) const { return offsets_[layer]; }
  // The chunks of a layer are [first_chunk(layer), first_chunk(layer + 1)).
  int64_t first_chunk(int64_t layer) const { return first_chunk_[layer]; }

  // Calls work(index, chunk) once for every chunk, on several threads when there is enough to do.
  template <typename Work>
  void for_each(const Work& work) const {
    const auto run = [&](int64_t first_task, int64_t last_task) {
      for (int64_t index = tasks_[first_task]; index < tasks_[last_task]; ++index) work(index, chunks_[index]);
    };
    const int64_t task_count = static_cast<int64_t>(tasks_.size()) - 1;
    if (numel_ <= kSerial) {
      run(0, task_count);
    } else {
      at::parallel_for(0, task_count, 1, run);
    }
  }

 private:
  std::vector<Chunk> chunks_;
  std::vector<int64_t> tasks_;  // first chunk of each task, and the end
  std::vector<int64_t> offsets_;
  std::vector<int64_t> first_chunk_;
  int64_t numel_ = 0;
};

}  // namespace grawa
