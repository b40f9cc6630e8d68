// Batch normalisation in training mode with the ReLU after it, forward and backward, and the products that Fisher
// information sums: each tensor as few times through memory as it goes. compiled.py compiles this file, once for
// float32 and once for bfloat16, and calls it.
//
// A tensor (N, C, H, W) in channels_last lies in memory as rows (N H) by columns (W C), and column j belongs to channel
// j % C. Passes go over columns: they vectorise whatever C is, and sums down a column, a W-th of what a channel adds
// up, are the more precise. What a channel has is spread over its columns before, or added up from them after.
//
// In batch normalisation each value of y is max(least, out) with out = weight (x - mean) / sqrt(variance + eps) + bias;
// `least` is 0 with ReLU and minus infinity without. A NaN stays one.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef BFLOAT16
typedef uint16_t value;

static inline float load(value x) {
    const uint32_t bits = (uint32_t)x << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline value rounded(float number) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return (value)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float value;

static inline float load(value x) { return x; }

static inline value rounded(float number) { return number; }
#endif

// --- passes: everything but x, y and gradients has a number for each column ------------------------------------------

// Mean and (biased) variance. Sums are of what exceeds the first value, so that a mean far from 0 costs no precision.
static void moments(long rows, long columns, const value *x, float *restrict mean, float *restrict variance) {
    const value *first = x;
    memset(mean, 0, columns * sizeof *mean);
    memset(variance, 0, columns * sizeof *variance);
    for (long r = 0; r < rows; ++r, x += columns)
        for (long j = 0; j < columns; ++j) {
            const float excess = load(x[j]) - load(first[j]);
            mean[j] += excess;
            variance[j] += excess * excess;
        }
    for (long j = 0; j < columns; ++j) {
        const float excess = mean[j] / rows;
        mean[j] = load(first[j]) + excess;
        variance[j] = variance[j] / rows - excess * excess;
    }
}

// out. Rounded once, so that all passes find the same sign.
static inline float affine(float x, float scale, float shift) { return fmaf(x, scale, shift); }

static void normalise(long rows, long columns, float least, const value *restrict x, const float *restrict scale,
                      const float *restrict shift, value *restrict y) {
    for (long r = 0; r < rows; ++r, x += columns, y += columns)
        for (long j = 0; j < columns; ++j) {
            const float out = affine(load(x[j]), scale[j], shift[j]);
            y[j] = rounded(out < least ? least : out);
        }
}

// The gradient at out.
static inline float passed(float gradient, float x, float scale, float shift, float least) {
    return affine(x, scale, shift) <= least ? 0 : gradient;
}

// Sums of p and of p (x - mean), where p is the gradient at out.
static void gradient_sums(long rows, long columns, float least, const value *restrict gradient,
                          const value *restrict x, const float *restrict scale, const float *restrict shift,
                          const float *restrict mean, float *restrict sum, float *restrict dot) {
    memset(sum, 0, columns * sizeof *sum);
    memset(dot, 0, columns * sizeof *dot);
    for (long r = 0; r < rows; ++r, gradient += columns, x += columns)
        for (long j = 0; j < columns; ++j) {
            const float at = load(x[j]), p = passed(load(gradient[j]), at, scale[j], shift[j], least);
            sum[j] += p;
            dot[j] += p * (at - mean[j]);
        }
}

// dx = scale p + slope x + constant
static void combine(long rows, long columns, float least, const value *restrict gradient, const value *restrict x,
                    const float *restrict scale, const float *restrict shift, const float *restrict slope,
                    const float *restrict constant, value *restrict dx) {
    for (long r = 0; r < rows; ++r, gradient += columns, x += columns, dx += columns)
        for (long j = 0; j < columns; ++j) {
            const float at = load(x[j]), p = passed(load(gradient[j]), at, scale[j], shift[j], least);
            dx[j] = rounded(scale[j] * p + slope[j] * at + constant[j]);
        }
}

// For each image, sums of a g.
void products(long images, long rows, long columns, const value *restrict a, const value *restrict g,
              float *restrict sums) {
    memset(sums, 0, images * columns * sizeof *sums);
    for (long n = 0; n < images; ++n, sums += columns)
        for (long r = 0; r < rows; ++r, a += columns, g += columns)
            for (long j = 0; j < columns; ++j) sums[j] += load(a[j]) * load(g[j]);
}

// --- layers: weight, bias, mean and inverse_std have a number for each channel ----------------------------------------

static void spread_affine(long columns, long channels, const float *weight, const float *bias, const float *mean,
                          const float *inverse_std, float *scale, float *shift) {
    for (long j = 0, c = 0; j < columns; ++j, c = (c + 1) % channels) {
        scale[j] = weight[c] * inverse_std[c];
        shift[j] = bias[c] - mean[c] * scale[j];
    }
}

// x -> y, mean and 1 / sqrt(variance + eps)
void forward(long rows, long columns, long channels, float least, float eps, const value *x, const float *weight,
             const float *bias, float *mean, float *inverse_std, value *y) {
    float *work = malloc(2 * columns * sizeof *work), *first = work, *second = work + columns;
    const double width = (double)columns / channels;
    moments(rows, columns, x, first, second);
    for (long c = 0; c < channels; ++c) {
        double centre = 0, variance = 0;
        for (long j = c; j < columns; j += channels) centre += first[j] / width;
        for (long j = c; j < columns; j += channels)
            variance += (second[j] + (first[j] - centre) * (first[j] - centre)) / width;
        mean[c] = (float)centre;
        inverse_std[c] = (float)(1 / sqrt(variance + eps));
    }
    spread_affine(columns, channels, weight, bias, mean, inverse_std, first, second);
    normalise(rows, columns, least, x, first, second, y);
    free(work);
}

// The gradient at y -> the gradient at x, with means over a channel:
// dx = weight inverse_std (p - mean(p) - (x - mean) inverse_std^2 mean(p (x - mean)))
void backward(long rows, long columns, long channels, float least, const value *gradient, const value *x,
              const float *weight, const float *bias, const float *mean, const float *inverse_std, value *dx) {
    float *work = malloc(5 * columns * sizeof *work), *scale = work, *shift = work + columns;
    float *centre = work + 2 * columns, *sum = work + 3 * columns, *dot = work + 4 * columns;
    const double count = (double)rows * columns / channels;
    spread_affine(columns, channels, weight, bias, mean, inverse_std, scale, shift);
    for (long j = 0; j < columns; ++j) centre[j] = mean[j % channels];
    gradient_sums(rows, columns, least, gradient, x, scale, shift, centre, sum, dot);
    for (long c = 0; c < channels; ++c) {
        double mean_p = 0, slope = 0;
        for (long j = c; j < columns; j += channels) {
            mean_p += sum[j] / count;
            slope -= scale[c] * inverse_std[c] * inverse_std[c] * dot[j] / count;
        }
        for (long j = c; j < columns; j += channels) {
            dot[j] = (float)slope;
            sum[j] = (float)(-scale[c] * mean_p - slope * mean[c]);
        }
    }
    combine(rows, columns, least, gradient, x, scale, shift, dot, sum, dx);
    free(work);
}
