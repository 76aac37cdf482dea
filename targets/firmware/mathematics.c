/* Functions that compiler_rt lacks and networks use; linked where there is no C library. Errors below 3e-7, relative to 1. */
#include "operators.h"

float erff(float x) {
  /* Abramowitz and Stegun 7.1.26, absolute error 1.5e-7; its leading term alone where that would be large beside x. */
  float a = x < 0 ? -x : x;
  if (a < 0.03125f) return x * (1.12837917f - 0.37612639f * a * a);
  float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  float y = 1.0f - p * expf(-a * a);
  return x < 0 ? -y : y;
}

float tanhf(float x) {
  float a = x < 0 ? -x : x;
  if (a < 0.25f) {
    float s = x * x;
    return x * (1.0f + s * (-0.333333333f + s * (0.133333333f + s * (-0.053968254f + s * 0.021869489f))));
  }
  float y = a > 10.0f ? 1.0f : 1.0f - 2.0f / (expf(2.0f * a) + 1.0f);
  return x < 0 ? -y : y;
}

float powf(float x, float y) {
  if (y == 0.0f || x == 1.0f) return 1.0f;
  if (x == 0.0f) return y > 0.0f ? 0.0f : inff;
  float whole = truncf(y);
  if (x < 0.0f && whole != y) return __builtin_nanf("");
  float magnitude = (float)exp((double)y * log((double)(x < 0.0f ? -x : x)));
  return x < 0.0f && fmodf(whole, 2.0f) != 0.0f ? -magnitude : magnitude;
}

float rintf(float x) {
  float down = floorf(x), rest = x - down;
  if (rest < 0.5f) return down;
  if (rest > 0.5f) return down + 1.0f;
  return fmodf(down, 2.0f) == 0.0f ? down : down + 1.0f;
}

float nearbyintf(float x) { return rintf(x); }

#ifndef __ARM_FP
/* Software floats by the names that LLVM objects of a core without an FPU call them; compiler_rt has Arm's own names alone. */
float __addsf3(float a, float b) { return a + b; }
float __subsf3(float a, float b) { return a - b; }
float __mulsf3(float a, float b) { return a * b; }
float __divsf3(float a, float b) { return a / b; }
int __unordsf2(float a, float b) { return a != a || b != b; }
int __eqsf2(float a, float b) { return a != b; }
int __nesf2(float a, float b) { return a != b; }
int __ltsf2(float a, float b) { return a < b ? -1 : 1; }
int __gesf2(float a, float b) { return a >= b ? 1 : -1; }
int __lesf2(float a, float b) { return a <= b ? -1 : 1; }
int __gtsf2(float a, float b) { return a > b ? 1 : -1; }
float __floatsisf(int32_t a) { return (float)a; }
float __floatunsisf(uint32_t a) { return (float)a; }
int32_t __fixsfsi(float a) { return (int32_t)a; }
uint32_t __fixunssfsi(float a) { return (uint32_t)a; }
#endif
