/* Factors of norms, as dpbench.clipping has them. */

#include <float.h>
#include <math.h>

enum { ABADI, AUTO_V, AUTO_S, OTHER };

typedef struct {
    int function;
    double bound, gamma;
    double (*other)(double); /* norm -> factor of any other function */
} clipping;

/* 0 where the norm is not finite.

   Guarantee: factor x norm <= bound for a finite norm, of the functions that are known here; it is 0 or a normal number of float. */
static inline double factor_of(double norm, const clipping *by) {
    if (!isfinite(norm)) return 0;
    double factor;
    switch (by->function) {
    case ABADI: factor = by->bound < norm ? by->bound / norm : 1; break;
    case AUTO_V: factor = norm == 0 ? 0 : by->bound / norm; break;
    case AUTO_S: factor = norm + by->gamma == 0 ? 0 : by->bound / (norm + by->gamma); break;
    default: factor = by->other(norm);
    }
    return factor < FLT_MIN || factor > FLT_MAX ? 0 : factor;
}
