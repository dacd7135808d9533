// 16 floats in four registers; shared by neon.cpp and dotprod.cpp.

struct F16 {
  float32x4_t v[4];

  static F16 splat(float x) {
    const float32x4_t lane = vdupq_n_f32(x);
    return {{lane, lane, lane, lane}};
  }
  static F16 zero() { return splat(0.0f); }
  static F16 load(const float* p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
  }
  static F16 load_bf16(const std::uint16_t* p) {
    const uint16x8_t a = vld1q_u16(p), b = vld1q_u16(p + 8), zero = vdupq_n_u16(0);
    return {{vreinterpretq_f32_u16(vzip1q_u16(zero, a)), vreinterpretq_f32_u16(vzip2q_u16(zero, a)),
             vreinterpretq_f32_u16(vzip1q_u16(zero, b)), vreinterpretq_f32_u16(vzip2q_u16(zero, b))}};
  }
  static F16 load_f16(const std::uint16_t* p) {
    F16 r;
    for (int i = 0; i < 4; ++i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
  }
  static void load_pairs(const unsigned char* p, F16& first, F16& second) {
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
      first.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
      second.v[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000u)));
    }
  }
  void store(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
  }
  void store8(std::int8_t* p) const {
    const auto eight = [&](int i) {
      return vcombine_s16(vmovn_s32(vcvtq_s32_f32(v[i])), vmovn_s32(vcvtq_s32_f32(v[i + 1])));
    };
    vst1q_s8(p, vcombine_s8(vmovn_s16(eight(0)), vmovn_s16(eight(2))));
  }
};

template <class F>
inline F16 each(const F16& a, const F16& b, const F& f) {
  return {{f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])}};
}

inline F16 add(const F16& a, const F16& b) { return each(a, b, vaddq_f32); }
inline F16 mul(const F16& a, const F16& b) { return each(a, b, vmulq_f32); }
inline F16 div(const F16& a, const F16& b) { return each(a, b, vdivq_f32); }
inline F16 least(const F16& a, const F16& b) { return each(a, b, vminq_f32); }
inline F16 most(const F16& a, const F16& b) { return each(a, b, vmaxq_f32); }

inline F16 whole(F16 a) {
  for (float32x4_t& lanes : a.v) lanes = vrndnq_f32(lanes);
  return a;
}

inline F16 fma(const F16& a, const F16& b, F16 c) {
  for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}

inline float32x4_t exp4(float32x4_t x) {  // see exp_of in plain.cpp
  x = vmaxq_f32(x, vdupq_n_f32(-87.0f));
  const int32x4_t n = vcvtnq_s32_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
  const float32x4_t whole = vcvtq_f32_s32(n);
  float32x4_t r = vfmsq_f32(x, whole, vdupq_n_f32(0.693359375f));
  r = vfmaq_f32(r, whole, vdupq_n_f32(2.12194440e-4f));
  float32x4_t p = vdupq_n_f32(1.9875691500e-4f);
  p = vfmaq_f32(vdupq_n_f32(1.3981999507e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), p, r);
  p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), p, r);
  p = vfmaq_f32(vaddq_f32(r, vdupq_n_f32(1.0f)), vmulq_f32(p, r), r);
  const int32x4_t power = vaddq_s32(vshlq_n_s32(n, 23), vdupq_n_s32(0x3F800000));
  return vmulq_f32(p, vreinterpretq_f32_s32(power));
}

inline F16 exp16(F16 a) {
  for (float32x4_t& lanes : a.v) lanes = exp4(lanes);
  return a;
}

inline F16 count_above(const F16& x, const F16& limit, F16 c) {
  const uint32x4_t one = vreinterpretq_u32_f32(vdupq_n_f32(1.0f));
  for (int i = 0; i < 4; ++i) {
    c.v[i] = vaddq_f32(c.v[i], vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(x.v[i], limit.v[i]), one)));
  }
  return c;
}

inline float largest(const F16& a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3])));
}

inline F16 select_less(const F16& a, const F16& b, const F16& x, F16 y) {
  for (int i = 0; i < 4; ++i) y.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]);
  return y;
}

inline F16 pick(const float (&table)[32], const F16& index) {
  float lanes[16];
  index.store(lanes);
  for (float& lane : lanes) lane = table[static_cast<int>(lane)];
  return F16::load(lanes);
}

inline float sum(const F16& a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

struct I16 {
  int32x4_t v;  // four lanes are enough: a sum of int8 products is exact in any order
  static I16 zero() { return {vdupq_n_s32(0)}; }
};

inline std::int32_t sum(const I16& a) { return vaddvq_s32(a.v); }

// See kTile4: one group of one output at a time.
inline void unpack_tile(const std::uint8_t* tile, const std::int8_t* table, std::int8_t* out) {
  static_assert(kGroup == 32 && kDepth == 64);
  const std::uint8_t* scales = tile + kTile8 / 2;
  for (int i = 0; i < 2 * kPanel; ++i) {
    const int8x16_t row = vld1q_s8(table + scales[i] * kCodes);
    const uint8x16_t codes = vld1q_u8(tile + 16 * i);
    std::int8_t* to = out + i % kPanel * kDepth + i / kPanel * kGroup;
    vst1q_s8(to, vqtbl1q_s8(row, vandq_u8(codes, vdupq_n_u8(15))));
    vst1q_s8(to + 16, vqtbl1q_s8(row, vshrq_n_u8(codes, 4)));
  }
}
