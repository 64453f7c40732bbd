// The inner loops, compiled once per instruction set. A source file includes this inside its own
// unnamed namespace, with the target selected, after defining
//   PYINV_VECTOR           floats in a register
//   PYINV_ROWS             rows of two registers each that the registers hold beside the operands
//   PYINV_MULTIPLY_ADD     the function float * Vector + Vector that the processor is fastest at
//
// With the vector extensions of GCC and clang, one source serves all of them. Nothing here may be
// inline in a namespace that two instruction sets share, or the linker could keep the wrong copy.

typedef float Vector __attribute__((vector_size(PYINV_VECTOR * sizeof(float)), aligned(4)));
typedef int Mask __attribute__((vector_size(PYINV_VECTOR * sizeof(float)), aligned(4)));

constexpr std::size_t vector = PYINV_VECTOR;
// A part of a panel of this many floats, 16 KiB, fills half of the usual first-level cache.
constexpr std::size_t panel_floats_at_once = 4096;

#define PYINV_INLINE static inline __attribute__((always_inline))

PYINV_INLINE Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
PYINV_INLINE void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

PYINV_INLINE Vector multiply_add(float factor, Vector value, Vector sum) {
  return PYINV_MULTIPLY_ADD(factor, value, sum);
}

template <std::size_t vectors, std::size_t rows_now>
static void multiply_rows(const float* const* rows, std::size_t first, std::size_t depth,
                          const float* weights, float* out, std::size_t out_stride,
                          bool accumulate) {
  const float* left[rows_now];
  Vector sums[rows_now][vectors];
  for (std::size_t row = 0; row < rows_now; ++row) {
    left[row] = rows[row] + first;
    for (std::size_t column = 0; column < vectors; ++column) {
      sums[row][column] = accumulate ? load(out + row * out_stride + column * vector) : Vector{};
    }
  }
  for (std::size_t k = 0; k < depth; ++k) {
    Vector right[vectors];
    for (std::size_t column = 0; column < vectors; ++column) {
      right[column] = load(weights + (k * vectors + column) * vector);
    }
#pragma GCC unroll 24
    for (std::size_t row = 0; row < rows_now; ++row) {
      const float factor = left[row][k];
      for (std::size_t column = 0; column < vectors; ++column) {
        sums[row][column] = multiply_add(factor, right[column], sums[row][column]);
      }
    }
  }
  for (std::size_t row = 0; row < rows_now; ++row) {
    for (std::size_t column = 0; column < vectors; ++column) {
      store(out + row * out_stride + column * vector, sums[row][column]);
    }
  }
}

// The last rows, fewer than `rows_now` + 1.
template <std::size_t vectors, std::size_t rows_now>
static void multiply_rest(const float* const* rows, std::size_t row_count, std::size_t first,
                          std::size_t depth, const float* weights, float* out,
                          std::size_t out_stride, bool accumulate) {
  if constexpr (rows_now > 0) {
    if (row_count == rows_now) {
      multiply_rows<vectors, rows_now>(rows, first, depth, weights, out, out_stride, accumulate);
    } else {
      multiply_rest<vectors, rows_now - 1>(rows, row_count, first, depth, weights, out, out_stride,
                                           accumulate);
    }
  }
}

template <std::size_t vectors>
static void multiply(const float* const* rows, std::size_t row_count, std::size_t depth,
                     const float* weights, std::size_t panels, std::size_t panel_stride, float* out,
                     std::size_t out_stride, bool accumulate) {
  constexpr std::size_t panel = vectors * vector;
  constexpr std::size_t rows_at_once = 2 * std::size_t{PYINV_ROWS} / vectors;
  constexpr std::size_t depth_at_once = panel_floats_at_once / panel;
  for (std::size_t first = 0; first < depth; first += depth_at_once) {
    const std::size_t depth_now = std::min(depth_at_once, depth - first);
    const bool add = accumulate || first > 0;
    for (std::size_t column = 0; column < panels; ++column) {
      const float* right = weights + column * panel_stride + first * panel;
      float* to = out + column * panel;
      std::size_t row = 0;
      for (; row + rows_at_once <= row_count; row += rows_at_once) {
        multiply_rows<vectors, rows_at_once>(rows + row, first, depth_now, right,
                                             to + row * out_stride, out_stride, add);
      }
      multiply_rest<vectors, rows_at_once - 1>(rows + row, row_count - row, first, depth_now, right,
                                               to + row * out_stride, out_stride, add);
    }
  }
}

// The one-dimensional transforms. The two-dimensional transform applies it along both axes.
struct Upsample4 {
  static constexpr std::size_t inputs = 4, transformed = 5, products = 6, outputs = 4;
  static constexpr std::size_t groups = 1;  // positions that one product sums over
  PYINV_INLINE void input(const Vector* x, Vector* t) {
    t[0] = x[0] - x[1];
    t[1] = x[1];
    t[2] = x[1] - x[2];
    t[3] = x[2];
    t[4] = x[2] - x[3];
  }
  PYINV_INLINE void output(const Vector* m, Vector* y) {
    y[0] = m[0] + m[1];
    y[1] = m[3] + m[4];
    y[2] = m[1] - m[2];
    y[3] = m[4] - m[5];
  }
};

struct Downsample4 {
  static constexpr std::size_t inputs = 6, transformed = 6, products = 3, outputs = 2;
  static constexpr std::size_t groups = 2;
  PYINV_INLINE void input(const Vector* x, Vector* t) {
    t[0] = x[0] - x[2];
    t[1] = x[2];
    t[2] = x[2] - x[4];
    t[3] = x[1] - x[3];
    t[4] = x[3];
    t[5] = x[3] - x[5];
  }
  PYINV_INLINE void output(const Vector* m, Vector* y) {
    y[0] = m[0] + m[1];
    y[1] = m[1] - m[2];
  }
};

struct Same3 {
  static constexpr std::size_t inputs = 4, transformed = 4, products = 4, outputs = 2;
  static constexpr std::size_t groups = 1;
  PYINV_INLINE void input(const Vector* x, Vector* t) {
    t[0] = x[0] - x[2];
    t[1] = x[1] + x[2];
    t[2] = x[2] - x[1];
    t[3] = x[1] - x[3];
  }
  PYINV_INLINE void output(const Vector* m, Vector* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

struct Downsample5 {
  static constexpr std::size_t inputs = 7, transformed = 8, products = 4, outputs = 2;
  static constexpr std::size_t groups = 2;
  PYINV_INLINE void input(const Vector* x, Vector* t) {
    t[0] = x[0] - x[4];
    t[1] = x[2] + x[4];
    t[2] = x[4] - x[2];
    t[3] = x[2] - x[6];
    t[4] = x[1] - x[5];
    t[5] = x[3] + x[5];
    t[6] = x[5] - x[3];
    t[7] = Vector{};  // no product reads it
  }
  PYINV_INLINE void output(const Vector* m, Vector* y) { Same3::output(m, y); }
};

template <class S>
static void transform_input(const InputTransform& tile) {
  constexpr std::size_t each = S::transformed / S::groups;
  for (std::size_t channel = 0; channel < tile.channels; channel += vector) {
    Vector half[S::inputs][S::transformed];
#pragma GCC unroll 8
    for (std::size_t y = 0; y < S::inputs; ++y) {
      Vector line[S::inputs];
#pragma GCC unroll 8
      for (std::size_t x = 0; x < S::inputs; ++x) {
        line[x] = load(tile.pixels[y * S::inputs + x] + channel);
      }
      S::input(line, half[y]);
    }
#pragma GCC unroll 8
    for (std::size_t x = 0; x < S::transformed; ++x) {
      Vector column[S::inputs], full[S::transformed];
#pragma GCC unroll 8
      for (std::size_t y = 0; y < S::inputs; ++y) column[y] = half[y][x];
      S::input(column, full);
#pragma GCC unroll 8
      for (std::size_t y = 0; y < S::transformed; ++y) {
        const std::size_t position = (y % each) * each + x % each;
        const std::size_t group = (y / each) * S::groups + x / each;
        store(tile.out + position * tile.position + group * tile.channels + channel, full[y]);
      }
    }
  }
}

PYINV_INLINE Vector finished(Vector sum, std::size_t channel, const Epilogue& epilogue,
                             const float* operand) {
  if (epilogue.bias) sum += load(epilogue.bias + channel);
  const Vector zero{};
  // Do not multiply by 0, which turns infinity into NaN. Values not below 0, and NaN, are
  // unchanged.
  const Vector sloped = epilogue.slope == 0.0f ? zero : sum * epilogue.slope;
  if (epilogue.activation != Activation::none) sum = sum < zero ? sloped : sum;
  if (operand) {
    const Vector other = load(operand + channel);
    sum = epilogue.is_factor ? sum * other : (other > zero ? sum : sloped);
  }
  return sum;
}

template <class S>
static void transform_output(const OutputTransform& tile, const Epilogue& epilogue) {
  for (std::size_t channel = 0; channel < tile.channels; channel += vector) {
    Vector half[S::products][S::outputs];
#pragma GCC unroll 6
    for (std::size_t y = 0; y < S::products; ++y) {
      Vector line[S::products];
#pragma GCC unroll 6
      for (std::size_t x = 0; x < S::products; ++x) {
        line[x] = load(tile.products + (y * S::products + x) * tile.position + channel);
      }
      S::output(line, half[y]);
    }
#pragma GCC unroll 6
    for (std::size_t x = 0; x < S::outputs; ++x) {
      Vector column[S::products], full[S::outputs];
#pragma GCC unroll 6
      for (std::size_t y = 0; y < S::products; ++y) column[y] = half[y][x];
      S::output(column, full);
#pragma GCC unroll 6
      for (std::size_t y = 0; y < S::outputs; ++y) {
        const std::size_t pixel = y * S::outputs + x;
        if (!tile.pixels[pixel]) continue;
        const float* operand = epilogue.operand ? tile.operand[pixel] : nullptr;
        store(tile.pixels[pixel] + channel, finished(full[y], channel, epilogue, operand));
      }
    }
  }
}

static void add_scaled(const float* from, float factor, std::size_t count, float* sum) {
  std::size_t at = 0;
  for (; at + vector <= count; at += vector) {
    store(sum + at, multiply_add(factor, load(from + at), load(sum + at)));
  }
  for (; at < count; ++at) sum[at] += factor * from[at];
}

static void gather(const Gather& g) {
  for (std::size_t block = 0; block < g.width + g.pieces - 1; ++block) {
    const std::size_t first = block < g.width ? 0 : block - g.width + 1;
    const std::size_t last = block < g.pieces ? block + 1 : g.pieces;
    for (std::size_t at = 0; at < g.block; at += vector) {
      Vector sum{};
      for (std::size_t row = 0; row < g.row_count; ++row) {
        for (std::size_t piece = first; piece < last; ++piece) {
          sum += load(g.rows[row] + (block - piece) * g.stride + piece * g.block + at);
        }
      }
      // The next block overwrites what a full register stores beyond its block.
      store(g.out + block * g.block + at, sum);
    }
  }
}

static void finish(const float* sums, std::size_t channels, const Epilogue& epilogue,
                   const float* operand, float* out) {
  std::size_t channel = 0;
  for (; channel + vector <= channels; channel += vector) {
    store(out + channel, finished(load(sums + channel), channel, epilogue, operand));
  }
  for (; channel < channels; ++channel) {
    float sum = sums[channel];
    if (epilogue.bias) sum += epilogue.bias[channel];
    const float sloped = epilogue.slope == 0.0f ? 0.0f : sum * epilogue.slope;
    if (epilogue.activation != Activation::none) sum = sum < 0.0f ? sloped : sum;
    if (operand && epilogue.is_factor) sum *= operand[channel];
    if (operand && !epilogue.is_factor) sum = operand[channel] > 0.0f ? sum : sloped;
    out[channel] = sum;
  }
}

// Kernels whose panels are this many registers wide.
template <std::size_t vectors>
static Kernels make_kernels(const char* name) {
  return {name,
          vector,
          vectors * vector,
          multiply<vectors>,
          {transform_input<Upsample4>, transform_input<Downsample4>, transform_input<Same3>,
           transform_input<Downsample5>},
          {transform_output<Upsample4>, transform_output<Downsample4>, transform_output<Same3>,
           transform_output<Downsample5>},
          add_scaled,
          gather,
          finish};
}
