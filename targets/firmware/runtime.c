/* Start-up, semihosting, marks and stack measurement for Cortex-M; one file for every core. */
#include "runtime.h"

#define CPACR (*(volatile uint32_t *)0xE000ED88)
#define CCR (*(volatile uint32_t *)0xE000ED14)
#define CFSR (*(volatile uint32_t *)0xE000ED28)
#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014)
#define SYSTICK_CURRENT (*(volatile uint32_t *)0xE000E018)
#define UNTOUCHED 0xA5C3E17Bu

extern uint32_t __data_start__[], __data_end__[], __data_load__[], __bss_start__[], __bss_end__[];
extern uint32_t __stack_limit__[], __stack_top__[];
int main(void);

__attribute__((naked, noinline)) static int semihost(int operation __attribute__((unused)), const void *argument __attribute__((unused))) {
  __asm volatile("bkpt 0xab\n bx lr");
}

enum { OPEN = 1, CLOSE = 2, WRITE = 5, READ = 6, EXIT_EXTENDED = 0x20, STOPPED = 0x20026, READ_BINARY = 1, WRITE_BINARY = 5 };

static int open_file(const char *path, uint32_t mode) {
  uint32_t length = 0;
  while (path[length]) length++;
  uint32_t block[3] = {(uint32_t)path, mode, length};
  return semihost(OPEN, block);
}

static size_t transfer(int operation, const char *path, uint32_t mode, const void *data, size_t nbytes) {
  int file = open_file(path, mode);
  if (file < 0) return 0;
  uint32_t block[3] = {(uint32_t)file, (uint32_t)data, nbytes};
  size_t left = (size_t)semihost(operation, block);
  uint32_t closing[1] = {(uint32_t)file};
  semihost(CLOSE, closing);
  return nbytes - left;
}

size_t host_read(const char *path, void *data, size_t nbytes) { return transfer(READ, path, READ_BINARY, data, nbytes); }

void host_write(const char *path, const void *data, size_t nbytes) { transfer(WRITE, path, WRITE_BINARY, data, nbytes); }

void host_exit(int code) {
  uint32_t block[2] = {STOPPED, (uint32_t)code};
  semihost(EXIT_EXTENDED, block);
  for (;;) {}
}

static uint32_t marked;

__attribute__((noinline)) void mark(void) { marks[marked++] = SYSTICK_CURRENT; }

__attribute__((noinline)) void paint_stack(void) {
  uint32_t *top;
  __asm volatile("mov %0, sp" : "=r"(top));
  for (volatile uint32_t *word = __stack_limit__; word < top - 8; word++) *word = UNTOUCHED;
}

uint32_t stack_high_water(void) {
  uint32_t *word = __stack_limit__;
  while (word < __stack_top__ && *word == UNTOUCHED) word++;
  return (uint32_t)((char *)__stack_top__ - (char *)word);
}

__attribute__((noinline, used)) static void start(void) {
  for (uint32_t *from = __data_load__, *to = __data_start__; to < __data_end__;) *to++ = *from++;
  for (uint32_t *word = __bss_start__; word < __bss_end__;) *word++ = 0;
#ifdef __ARM_FEATURE_MVE
  CCR |= 1u << 19; /* low-overhead branches */
#endif
  SYSTICK_RELOAD = 0xFFFFFF;
  SYSTICK_CURRENT = 0;
  SYSTICK_CONTROL = 5;
  host_exit(main());
}

/* The FPU comes on before any C runs: compilers vectorize the copy of .data. */
__attribute__((naked, used)) void Reset_Handler(void) {
#ifdef __ARM_FP
  __asm volatile(
      "movw r0, #0xed88\n movt r0, #0xe000\n ldr r1, [r0]\n orr r1, r1, #0xf00000\n str r1, [r0]\n dsb\n isb");
#endif
  __asm volatile("b start");
}

__attribute__((used)) static void fault(void) {
  uint32_t cause = CFSR;
  host_write("fault.bin", &cause, sizeof cause);
  host_exit(99);
}

__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    __stack_top__, (void *)Reset_Handler, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
    0, 0, 0, (void *)fault, (void *)fault, 0, (void *)fault, (void *)fault,
};
