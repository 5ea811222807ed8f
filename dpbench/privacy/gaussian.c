/* The Box-Muller transform of `gaussian.py` in one pass over memory. Plain C; the compiler makes vectors of it. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* log x of a positive normal number: x = 2^k m, m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)). */
INLINE float logarithm(float x) {
    uint32_t bits = as_bits(x) + (0x3f800000u - 0x3f3504f3u);
    float k = (float)((int32_t)(bits >> 23) - 127);
    float f = as_float((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float s = f / (2.0f + f), z = s * s;
    float series = z * (0.66666662693f + z * (0.40000972152f + z * (0.28498786688f + z * 0.24279078841f)));
    float half = 0.5f * f * f;
    return k * 0.69313812256f + (f - (half - (s * (half + series) + k * 9.0580006145e-6f)));
}

typedef struct {
    float cosine, sine;
} pair;

/* Two normal numbers of standard deviation std: the word `length` gives their radius, the word `turn` their angle. */
INLINE pair normal(uint32_t length, uint32_t turn, float std) {
    float u = (float)length * 0x1p-32f + 0x1p-33f; /* in (0, 1] */
    float radius = std * __builtin_sqrtf(-2.0f * logarithm(u));
    uint32_t quarter = (turn + 0x20000000u) >> 30;                         /* of a turn, the nearest */
    float a = (float)(int32_t)(turn - (quarter << 30)) * 1.4629180793e-9f; /* 2 pi / 2^32: in [-pi/4, pi/4] */
    float q = a * a;
    float sine = a + a * q * (-1.6666654611e-1f + q * (8.3321608736e-3f - q * 1.9515295891e-4f));
    float cosine = 1.0f - 0.5f * q + q * q * (4.1666645683e-2f + q * (-1.3887316255e-3f + q * 2.4433157118e-5f));
    uint32_t odd = 0u - (quarter & 1u);
    uint32_t x = (as_bits(cosine) & ~odd) | (as_bits(sine) & odd);
    uint32_t y = (as_bits(sine) & ~odd) | (as_bits(cosine) & odd);
    x ^= ((quarter + 1u) & 2u) << 30; /* the cosine is negative in the second and third quarter */
    y ^= (quarter & 2u) << 30;        /* the sine in the third and fourth */
    return (pair){radius * as_float(x), radius * as_float(y)};
}

/* values[n] = scale x values + N(0, std^2). words: of the keystream, ceil(n / 2) for the radii, then as many for the angles; word k of
   both is for elements k and ceil(n / 2) + k. */
void dpbench_perturb(float *restrict values, size_t n, const uint32_t *restrict words, float scale, float std) {
    const size_t half = (n + 1) / 2;
    float *restrict second = values + half;
    for (size_t k = 0; k < n / 2; k++) {
        pair two = normal(words[k], words[half + k], std);
        values[k] = scale * values[k] + two.cosine;
        second[k] = scale * second[k] + two.sine;
    }
    if (n % 2) values[half - 1] = scale * values[half - 1] + normal(words[half - 1], words[n], std).cosine;
}
