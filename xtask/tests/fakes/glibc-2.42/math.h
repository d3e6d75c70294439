/* What <math.h> of glibc 2.42 declares beyond that of older ones, as a C++ compiler sees it. */
#include_next <math.h>
#ifdef __cplusplus
extern "C" {
extern double rsqrt(double) noexcept(true);
extern float rsqrtf(float) noexcept(true);
}
#endif
