/*
 * Tensors as DLPack 1.x lays them out (dmlc/dlpack, dlpack.h): borrowed for the call, never owned, never copied.
 *
 * What the library hands out is dense and row-major, its byte_offset 0, its memory aligned for its elements.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_TENSOR_H
#define DUALPIPE_TENSOR_H

#include <stddef.h>
#include <stdint.h>
#include "status.h"
/* These are DLPack's own names. Include dlpack.h, if at all, before this header: then its are used. */
#if !defined(DLPACK_DLPACK_H_) && !defined(DLPACK_VERSION) && !defined(DLPACK_MAJOR_VERSION)

/**
 * Where a tensor's memory is.
 */
typedef struct DLDevice {
  /**
   * A DLDeviceType: 1 is the CPU, 2 is CUDA.
   */
  int32_t device_type;
  /**
   * Which of them.
   */
  int32_t device_id;
} DLDevice;

/**
 * What a tensor's elements are.
 */
typedef struct DLDataType {
  /**
   * A DLDataTypeCode: 0 signed, 1 unsigned, 2 float, 4 bfloat.
   */
  uint8_t code;
  /**
   * Bits of one element.
   */
  uint8_t bits;
  /**
   * 1, or more for vector types.
   */
  uint16_t lanes;
} DLDataType;

/**
 * A tensor in the caller's memory.
 */
typedef struct DLTensor {
  /**
   * Its memory; the first element is byte_offset further.
   */
  void *data;
  /**
   * Where its memory is.
   */
  struct DLDevice device;
  /**
   * The number of dimensions.
   */
  int32_t ndim;
  /**
   * What its elements are.
   */
  struct DLDataType dtype;
  /**
   * Elements in each dimension, ndim numbers.
   */
  int64_t *shape;
  /**
   * Elements, not bytes, from one to the next in each dimension, ndim numbers; NULL if it is contiguous, row by row.
   */
  int64_t *strides;
  /**
   * Bytes from data to the first element.
   */
  uint64_t byte_offset;
} DLTensor;

#endif /* DLPack */

#endif /* DUALPIPE_TENSOR_H */
