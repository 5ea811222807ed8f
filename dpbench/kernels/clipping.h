/* Factors of norms, as dpbench.clipping has them. */

#include <math.h>

enum { ABADI, AUTO_V, AUTO_S, OTHER };

typedef struct {
    int function;
    double bound, gamma;
    double (*other)(double); /* norm -> factor of any other function */
} clipping;

/* 0 where the norm is not finite.

   Guarantee: factor x norm <= bound for a finite norm, of the functions that are known here. */
static inline double factor_of(double norm, const clipping *by) {
    if (!isfinite(norm)) return 0;
    switch (by->function) {
    case ABADI: return by->bound < norm ? by->bound / norm : 1;
    case AUTO_V: return norm == 0 ? 0 : by->bound / norm;
    case AUTO_S: return norm + by->gamma == 0 ? 0 : by->bound / (norm + by->gamma);
    default: return by->other(norm);
    }
}
