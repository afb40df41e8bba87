#pragma once

#include <cuda_runtime_api.h>

#include "cuda/multi_tensor.cuh"
#include "step.h"

// What the host gives the kernels of the local steps.
namespace grawa::cuda {

// What the host knows of a step, by value: another learning rate at each step is no upload. Layers with the same
// settings share them: a set for each param group, and one more for layers that have missed a gradient.
template <typename Rule>
struct StepSettings {
  Rule rule;
  double lr;
  double pull;
  double bias1;
  double bias2_root;
};

// A number in device memory that stands in for one of the settings; none without data.
struct StepNumber {
  void* data = nullptr;
  int64_t is_double = 0;

  __device__ double read() const { return Scalars{data, 0, is_double != 0}.read(0); }
  __device__ void write(double value) const { Scalars{data, 0, is_double != 0}.write(0, value); }
};

// A layer's operands in the table, beside the parameter itself. They change when tensors move, not at every step.
struct StepOperands {
  void* grad = nullptr;
  void* states[2] = {};
  const void* center = nullptr;
  StepNumber lr;
  StepNumber pull;
  StepNumber count;  // of AdamW's steps
  int32_t settings = 0;
  int32_t center_dtype = 0;
  int32_t norm_row = -1;
  int32_t has_grad = 0;  // 0: the layer is only pulled
};

// Some architectures take 4 KB of arguments.
constexpr int64_t kMostSettings = 48;

template <typename Rule>
struct StepArguments {
  View view;
  Scalars norms;
  StepNumber grad_scale;
  StepNumber found_inf;
  int64_t first;  // of the layers' settings that are here; the blocks of other layers have nothing to do
  int64_t count;
  StepSettings<Rule> settings[kMostSettings];
};

static_assert(sizeof(StepArguments<SgdRule>) <= 4096 && sizeof(StepArguments<AdamwRule>) <= 4096);

void launch_step(const StepArguments<SgdRule>& arguments, Kinds kinds, cudaStream_t stream);
void launch_step(const StepArguments<AdamwRule>& arguments, Kinds kinds, cudaStream_t stream);

}  // namespace grawa::cuda
