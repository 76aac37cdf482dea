/* Unicorn's block hook, on the host: counts executed Thumb instructions, and notes the count at every call of mark(). */
#include <stdint.h>

struct counter {
  uint64_t executed, mark_address, n_marks, capacity;
  uint64_t *at_mark;
  const uint8_t *code; /* the text section */
  uint64_t base, size;
  uint16_t *block_bytes, *block_instructions; /* per halfword of the text: the block that starts there */
};

static uint16_t instructions(const uint8_t *code, uint32_t nbytes) {
  uint16_t n = 0;
  for (uint32_t i = 0; i < nbytes; n++) i += (code[i + 1] >> 3) >= 0x1d ? 4 : 2;
  return n;
}

void count_block(void *engine, uint64_t address, uint32_t nbytes, void *user) {
  struct counter *c = user;
  (void)engine;
  if (address == c->mark_address && c->n_marks < c->capacity) c->at_mark[c->n_marks++] = c->executed;
  uint64_t offset = address - c->base;
  if (offset >= c->size || nbytes > c->size - offset) return;
  if (c->block_bytes[offset / 2] != nbytes) {
    c->block_bytes[offset / 2] = (uint16_t)nbytes;
    c->block_instructions[offset / 2] = instructions(c->code + offset, nbytes);
  }
  c->executed += c->block_instructions[offset / 2];
}
