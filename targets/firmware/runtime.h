/* What generated firmware calls: files of the host through semihosting, marks between operators, the painted stack. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Bytes read into `data`, 0 where the file is missing. */
size_t host_read(const char *path, void *data, size_t nbytes);
void host_write(const char *path, const void *data, size_t nbytes);
void host_exit(int code) __attribute__((noreturn));

/* Notes the time (SysTick, counting down) in the next place of `marks`; emulators that count instructions watch its address. */
void mark(void);
extern uint32_t marks[];

void paint_stack(void);
uint32_t stack_high_water(void); /* bytes */
