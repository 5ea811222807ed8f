/* Per-example gradients of a normalisation's scale and shift: input and output gradient are read once. */

#include <omp.h>
#include <stddef.h>
#include <string.h>

#include "../clipping.h"

enum { CHUNK = 64 }; /* tokens added up before they are added to the others: keeps fp32 rounding near 1e-6 */

static float sum_of(const float *x, size_t width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t d = 0; d < width; d++) sum += x[d];
    return sum;
}

static float squares_of(const float *x, float mean, size_t width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t d = 0; d < width; d++) sum += (x[d] - mean) * (x[d] - mean);
    return sum;
}

/* scale[d] += g xhat and shift[d] += g over tokens; either may be NULL. */
static void add(
    const float *restrict x, const float *restrict g, size_t tokens, size_t width, float eps, int centred, float *restrict scale,
    float *restrict shift
) {
    for (size_t t = 0; t < tokens; t++, x += width, g += width) {
        if (scale) {
            const float mean = centred ? sum_of(x, width) / width : 0;
            const float by = 1 / sqrtf(squares_of(x, mean, width) / width + eps);
            for (size_t d = 0; d < width; d++) scale[d] += g[d] * ((x[d] - mean) * by);
        }
        if (shift)
            for (size_t d = 0; d < width; d++) shift[d] += g[d];
    }
}

/* Floats of room that a call of dpbench_norm_gradients needs. */
size_t dpbench_norm_gradients_room(size_t width, int threads) { return 2 * width * threads; }

/* x, g [batch][tokens][width] -> gradients [batch][kinds][width], each example's gradient of the scale, then of the shift, as asked for.
   centred: of layer norm, else of RMS norm. The same result for any number of threads. */
void dpbench_norm_gradients(
    const float *x, const float *g, size_t batch, size_t tokens, size_t width, float eps, int centred, int has_scale, int has_shift,
    float *gradients, float *room, int threads
) {
    const size_t kinds = has_scale + has_shift;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t b = 0; b < batch; b++) {
        float *sums = room + 2 * width * omp_get_thread_num(), *total = gradients + b * kinds * width;
        float *scale = has_scale ? sums : NULL, *shift = has_shift ? sums + has_scale * width : NULL;
        memset(total, 0, kinds * width * sizeof *total);
        for (size_t t = 0; t < tokens; t += CHUNK) {
            const size_t place = (b * tokens + t) * width, some = tokens - t < CHUNK ? tokens - t : CHUNK;
            memset(sums, 0, kinds * width * sizeof *sums);
            add(x + place, g + place, some, width, eps, centred, scale, shift);
            for (size_t d = 0; d < kinds * width; d++) total[d] += sums[d];
        }
    }
}

/* gradients [batch][kinds][width], as dpbench_norm_gradients leaves it: each example's norm over all kinds, and sums[k] (+)= its gradient of
   kind k times its factor. An example whose norm is not finite is left out. */
void dpbench_norm_clip(
    const float *gradients, size_t batch, size_t kinds, size_t width, float *const *sums, int function, double bound, double gamma,
    double (*other)(double), float *norms
) {
    const clipping by = {function, bound, gamma, other};
    for (size_t b = 0; b < batch; b++, gradients += kinds * width) {
        double squared = 0;
        for (size_t d = 0; d < kinds * width; d++) squared += (double)gradients[d] * gradients[d];
        norms[b] = sqrt(squared);
        if (!isfinite(norms[b])) continue;
        const float factor = factor_of(sqrt(squared), &by);
        for (size_t k = 0; k < kinds; k++)
            for (size_t d = 0; d < width; d++) sums[k][d] += factor * gradients[k * width + d];
    }
}
