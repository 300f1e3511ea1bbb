/* wb_host_device.h - the mark of a small function that the host and a GPU both compile (not installed).
 *
 * Owns: WB_HD, written `static WB_HD`. A rule in which two backends must not differ by a bit is one such
 * function: with a copy for each backend, the one that is forgotten in a change gives other bits. Refuses:
 * anything of CUDA beyond the keywords. */
#ifndef WB_HOST_DEVICE_H
#define WB_HOST_DEVICE_H

#ifdef __CUDACC__
#define WB_HD __host__ __device__ __forceinline__
#else
#define WB_HD inline
#endif

#endif
