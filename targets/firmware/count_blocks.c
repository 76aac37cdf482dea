/* Unicorn's block hook, on the host: counts executed Thumb instructions and estimates their cycles, noting both at every call of mark(). */
#include <stdint.h>

struct costs { /* cycles by class of instruction; what is in no class takes one */
  uint32_t load_store, pipelined, multiple, refill, multiply_add, multiply_long, divide;
  uint32_t fp_load_store, fp_multiply_add, fp_divide, fp_pair;
};

struct block {
  uint16_t bytes, instructions;
  uint32_t cycles;
};

struct counter {
  uint64_t executed, cycles, mark_address, n_marks, capacity;
  uint64_t *at_mark, *cycles_at_mark;
  const uint8_t *code; /* the text section */
  uint64_t base, size, expected; /* expected: the address after the last block, where no branch is taken */
  struct block *blocks; /* per halfword of the text: the block that starts there */
  struct costs costs;
};

static uint32_t registers(uint32_t list) { return (uint32_t)__builtin_popcount(list); }

static uint32_t fp_cycles(uint32_t first, uint32_t second, const struct costs *c) {
  if ((first & 0xFF00) == 0xEE00 && !(second & 0x10)) {
    uint32_t operation = (first >> 4) & 0xB;
    if (operation == 0x0 || operation == 0x1 || operation == 0x9 || operation == 0xA) return c->fp_multiply_add;
    if (operation == 0x8 || (operation == 0xB && (first & 0xF) == 1 && (second & 0xC0) == 0xC0)) return c->fp_divide;
    return 1;
  }
  if ((first & 0xFE00) != 0xEC00) return 1;
  if ((first & 0xFFE0) == 0xEC40) return c->fp_pair;
  if ((first & 0x0120) == 0x0100) return c->fp_load_store + (second >> 8 & 1);
  return c->multiple + (second & 0xFF);
}

static uint32_t wide_cycles(uint32_t first, uint32_t second, const struct costs *c, int *single) {
  if ((first & 0xEC00) == 0xEC00 && (second & 0x0E00) == 0x0A00) return fp_cycles(first, second, c);
  if ((first & 0xFE40) == 0xE800) return c->multiple + registers(second);
  if ((first & 0xFE40) == 0xE840) return c->multiple + 2;
  if ((first & 0xFE00) == 0xF800) {
    *single = 1;
    return c->load_store;
  }
  if ((first & 0xFF80) == 0xFB00) return second >> 12 == 0xF ? 1 : c->multiply_add;
  if ((first & 0xFFD0) == 0xFB90) return c->divide;
  if ((first & 0xFF80) == 0xFB80) return c->multiply_long;
  return 1;
}

static uint32_t narrow_cycles(uint32_t code, const struct costs *c, int *single) {
  uint32_t top = code >> 12;
  if ((code & 0xF800) == 0x4800 || (top >= 5 && top <= 9)) {
    *single = 1;
    return c->load_store;
  }
  if ((code & 0xF600) == 0xB400) return c->multiple + registers(code & 0x1FF);
  if (top == 0xC) return c->multiple + registers(code & 0xFF);
  return 1;
}

static struct block measured(const uint8_t *code, uint32_t nbytes, const struct costs *c) {
  struct block block = {(uint16_t)nbytes, 0, 0};
  int after_single = 0;
  for (uint32_t i = 0; i < nbytes; block.instructions++) {
    uint32_t first = code[i] | (uint32_t)code[i + 1] << 8;
    int wide = first >> 11 >= 0x1D, single = 0;
    uint32_t cycles = wide ? wide_cycles(first, code[i + 2] | (uint32_t)code[i + 3] << 8, c, &single) : narrow_cycles(first, c, &single);
    block.cycles += single && after_single ? c->pipelined : cycles;
    after_single = single;
    i += wide ? 4 : 2;
  }
  return block;
}

void count_block(void *engine, uint64_t address, uint32_t nbytes, void *user) {
  struct counter *c = user;
  (void)engine;
  if (address != c->expected) c->cycles += c->costs.refill;
  c->expected = address + nbytes;
  if (address == c->mark_address && c->n_marks < c->capacity) {
    c->cycles_at_mark[c->n_marks] = c->cycles;
    c->at_mark[c->n_marks++] = c->executed;
  }
  uint64_t offset = address - c->base;
  if (offset >= c->size || nbytes > c->size - offset) return;
  struct block *block = &c->blocks[offset / 2];
  if (block->bytes != nbytes) *block = measured(c->code + offset, nbytes, &c->costs);
  c->executed += block->instructions;
  c->cycles += block->cycles;
}
