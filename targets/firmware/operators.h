/* What generated operators use of C: fixed-width integers and single-precision mathematics, without a C library's headers. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define inff __builtin_inff() /* as the code generator prints infinity */
#define inf __builtin_inf()

/* Nothing but their result: a compiler may compute equal calls once, and outside of loops. */
#define PURE __attribute__((const))
PURE float expf(float), exp2f(float), exp10f(float), logf(float), log2f(float), log10f(float), log1pf(float), sqrtf(float);
PURE float sinf(float), cosf(float), tanf(float), asinf(float), acosf(float), atanf(float), atan2f(float, float);
PURE float tanhf(float), sinhf(float), coshf(float), erff(float), powf(float, float), fmodf(float, float);
PURE float floorf(float), ceilf(float), truncf(float), roundf(float), rintf(float), nearbyintf(float), fabsf(float);
PURE double exp(double), log(double);
