// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <jpeglib.h>
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <limits>
#include <numeric>
#include <set>

#include "core/io/hdf5.h"
#include "data/hdf5.h"
#include "data/image/decode.h"
#include "data/image/images.h"
#include "data/image/randaugment.h"
#include "data/image/resize.h"
#include "data/test_util.h"

namespace fovea::data {
namespace {

class Images : public TestFolder {};

std::string as_png(const Rgb& rgb) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(rgb.width);
  image.height = static_cast<png_uint_32>(rgb.height);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  png_image_write_to_memory(&image, nullptr, &size, 0, rgb.values.data(), 0, nullptr);
  std::string out(size, '\0');
  png_image_write_to_memory(&image, out.data(), &size, 0, rgb.values.data(), 0, nullptr);
  return out;
}

std::string as_jpeg(const Rgb& rgb) {
  jpeg_compress_struct codec{};
  jpeg_error_mgr errors{};
  codec.err = jpeg_std_error(&errors);
  jpeg_create_compress(&codec);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&codec, &bytes, &size);
  codec.image_width = static_cast<JDIMENSION>(rgb.width);
  codec.image_height = static_cast<JDIMENSION>(rgb.height);
  codec.input_components = 3;
  codec.in_color_space = JCS_RGB;
  jpeg_set_defaults(&codec);
  jpeg_set_quality(&codec, 98, TRUE);
  jpeg_start_compress(&codec, TRUE);
  for (int64_t y = 0; y < rgb.height; ++y) {
    auto* row = const_cast<JSAMPLE*>(rgb.values.data() + y * rgb.width * 3);
    jpeg_write_scanlines(&codec, &row, 1);
  }
  jpeg_finish_compress(&codec);
  std::string out(reinterpret_cast<char*>(bytes), size);
  jpeg_destroy_compress(&codec);
  free(bytes);
  return out;
}

// Smooth, so that JPEG keeps it: red grows downwards, green to the right, blue is `blue`.
Rgb ramp(int64_t height, int64_t width, uint8_t blue) {
  Rgb rgb{height, width, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      rgb.values.push_back(static_cast<uint8_t>(y * 255 / height));
      rgb.values.push_back(static_cast<uint8_t>(x * 255 / width));
      rgb.values.push_back(blue);
    }
  }
  return rgb;
}

Batch first(const Source& source, int64_t index = 0, uint64_t ordinal = 0) {
  const Sample sample{index, 0, ordinal};
  return source.make({&sample, 1}, 1);
}

// ---- files --------------------------------------------------------------------------------------

TEST_F(Images, PngAndJpegAreDecodedAndDamageIsNamed) {
  const Rgb rgb = ramp(20, 33, 77);
  put("a.png", as_png(rgb));
  put("b.jpg", as_jpeg(rgb));
  const Rgb png = decode_image(folder / "a.png"), jpeg = decode_image(folder / "b.jpg");
  EXPECT_EQ(png.values, rgb.values);
  ASSERT_EQ(jpeg.values.size(), rgb.values.size());
  EXPECT_EQ(jpeg.height, 20);
  for (size_t i = 0; i < rgb.values.size(); ++i) EXPECT_NEAR(jpeg.values[i], rgb.values[i], 16);
  const std::string packed = as_png(ramp(200, 300, 9)), whole = as_jpeg(ramp(200, 300, 9));
  put("a.png", packed.substr(0, packed.size() / 2));
  EXPECT_ERROR(decode_image(folder / "a.png"), "a.png: ");
  put("b.jpg", whole.substr(0, whole.size() / 2));
  EXPECT_ERROR(decode_image(folder / "b.jpg"), "b.jpg: the JPEG data are damaged or cut short");
  put("b.jpg", whole.substr(0, 30));
  EXPECT_ERROR(decode_image(folder / "b.jpg"), "b.jpg: ");
  put("c.png", "text");
  EXPECT_ERROR(decode_image(folder / "c.png"), "c.png: is neither PNG nor JPEG");
}

TEST_F(Images, FilesCutOrDamagedAnywhereNeverCrash) {
  const Rgb rgb = ramp(24, 17, 9);
  for (const auto& [name, whole] :
       {std::pair<std::string, std::string>{"a.png", as_png(rgb)}, {"b.jpg", as_jpeg(rgb)}}) {
    const auto decode = [&, file = folder / name](const std::string& content) {
      put(file.filename().string(), content);
      try {
        const Rgb image = decode_image(file);
        EXPECT_EQ(image.values.size(), static_cast<size_t>(image.height * image.width * 3));
      } catch (const Error& e) {
        EXPECT_TRUE(std::string_view(e.what()).starts_with("image " + file.string())) << e.what();
        return false;
      }
      return true;
    };
    size_t refused = 0;
    for (size_t at = 0; at < whole.size(); at += 1 + at / 64) {
      refused += decode(whole.substr(0, at)) ? 0 : 1;
      for (const int bit : {0, 4, 7}) {
        std::string damaged = whole;
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
        decode(damaged);
      }
    }
    EXPECT_GT(refused, 20u);
    EXPECT_TRUE(decode(whole));
    EXPECT_FALSE(decode(whole.substr(0, whole.size() / 2)));
  }
}

TEST_F(Images, NoRoomIsMadeForTheSizeThatADamagedHeaderClaims) {
  std::string huge = as_jpeg(ramp(16, 16, 0));
  const size_t frame = huge.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  huge[frame + 1] = '\xc2';  // progressive: libjpeg would hold all coefficients
  for (const size_t at : {frame + 5, frame + 7}) huge.replace(at, 2, "\xff\xdc");
  put("huge.jpg", huge);
  EXPECT_ERROR(decode_image(folder / "huge.jpg"), "huge.jpg: 65500 x 65500 pixels are too many");
}

TEST_F(Images, AFolderForEachClass) {
  for (const char* split : {"train", "val"}) {
    put(std::string(split) + "/cat/1.png", as_png(ramp(40, 60, 0)));
    put(std::string(split) + "/cat/sub/0.JPG", as_jpeg(ramp(60, 40, 0)));
    put(std::string(split) + "/dog/x.png", as_png(ramp(32, 32, 255)));
    put(std::string(split) + "/dog/notes.txt", "not an image");
  }
  ImageFolderOptions options;
  options.path = folder.string();
  options.size = 16;
  options.mean = {0.0};
  options.deviation = {1.0};
  const auto source = make_image_folder(options, Split::train);
  EXPECT_EQ(source->size(), 3);
  EXPECT_EQ(source->description().classes, 2);
  const Batch cat = first(*source, 0), dog = first(*source, 2);
  EXPECT_EQ(cat.inputs.shape(), (Shape{1, 3, 16, 16}));
  EXPECT_EQ(cat.targets.item(), 0);
  EXPECT_EQ(dog.targets.item(), 1);
  // the centre square of the ramp: 1/1.15 of the shorter side, about the middle
  const auto values = cat.inputs.to_vector<float>();
  EXPECT_NEAR(std::accumulate(values.begin(), values.begin() + 256, 0.0) / 256.0, 0.49, 0.02);
  EXPECT_NEAR(values[15 * 16] - values[0], 15.0 / 16.0 / 1.15, 0.03);
  EXPECT_NEAR(values[256 + 15] - values[256], 15.0 / 16.0 / 1.15 * 40.0 / 60.0, 0.03);
  EXPECT_FLOAT_EQ(dog.inputs.to_vector<float>()[600], 1.0f);

  put("val/bird/x.png", as_png(ramp(8, 8, 0)));
  EXPECT_ERROR(make_image_folder(options, Split::val), "class bird is not among those of train/");
  put("train/dog/old.bmp", "BM");
  EXPECT_ERROR(make_image_folder(options, Split::train), "old.bmp: only PNG and JPEG are read");
  options.path = (folder / "train" / "cat" / "sub").string();
  EXPECT_ERROR(make_image_folder(options, Split::train),
               "has no folders, expected one for each class");
  options.path = (folder / "none").string();
  EXPECT_ERROR(make_image_folder(options, Split::train), "none: no such folder");
}

TEST_F(Images, AFolderWithoutSplitsHoldsOutAPart) {
  for (int i = 0; i < 20; ++i)
    put("a/" + std::to_string(100 + i) + ".png", as_png(ramp(4, 4, static_cast<uint8_t>(i))));
  ImageFolderOptions options;
  options.path = folder.string();
  options.size = 4;
  options.mean = {0.0};
  options.deviation = {1.0};
  options.val_fraction = 0.25;
  std::set<int> seen;
  for (Split split : {Split::train, Split::val}) {
    const auto source = make_image_folder(options, split);
    EXPECT_EQ(source->size(), split == Split::train ? 15 : 5);
    for (int64_t i = 0; i < source->size(); ++i)
      seen.insert(
          static_cast<int>(std::lround(first(*source, i).inputs.to_vector<float>()[40] * 255.0f)));
  }
  EXPECT_EQ(seen.size(), 20u);  // each image once
}

TEST_F(Images, CifarRecords) {
  std::string ten, hundred;
  for (int record = 0; record < 2; ++record) {
    ten += static_cast<char>(3 + record);
    hundred += static_cast<char>(19);
    hundred += static_cast<char>(99 - record);
    for (int p = 0; p < 3072; ++p) {
      ten += static_cast<char>(p / 1024 * 100 + record);
      hundred += static_cast<char>(p % 256);
    }
  }
  for (int i = 1; i <= 5; ++i) put("data_batch_" + std::to_string(i) + ".bin", ten);
  put("train.bin", hundred);
  put("fine_label_names.txt", "apple\n");
  ImageOptions options({0.0, 0.0, 0.5}, {1.0});
  options.path = folder.string();
  const auto source = make_cifar10(options, Split::train);
  EXPECT_EQ(source->size(), 10);
  const Batch batch = first(*source, 7);
  EXPECT_EQ(batch.targets.item(), 4);
  const auto values = batch.inputs.to_vector<float>();
  EXPECT_FLOAT_EQ(values[5], 1.0f / 255.0f);
  EXPECT_FLOAT_EQ(values[1024], 101.0f / 255.0f);
  EXPECT_FLOAT_EQ(values[3071], 201.0f / 255.0f - 0.5f);
  EXPECT_EQ(first(*make_cifar100(options, Split::train), 1).targets.item(), 98);
  EXPECT_EQ(kind_of(folder), "cifar10");

  EXPECT_ERROR(make_cifar10(options, Split::val), "has no test_batch.bin");
  put("data_batch_5.bin", ten.substr(1));
  EXPECT_ERROR(make_cifar10(options, Split::train),
               "6145 bytes are no whole number of records of 3073");
  ten[0] = 10;
  put("data_batch_5.bin", ten);
  EXPECT_ERROR(make_cifar10(options, Split::train), "label 10 of image 8 is outside [0, 10)");
  options.mean = {0.5, 0.5};
  EXPECT_ERROR(make_cifar100(options, Split::train),
               "data.mean has 2 numbers; expected 1, or one for each of 3 channels");
}

TEST_F(Images, Hdf5HoldsImagesOrSequences) {
  const std::string path = (folder / "set.h5").string();
  Hdf5Options options;
  options.path = path;
  options.mean = {0.0};
  options.deviation = {1.0};
  const auto write = [&](const std::vector<std::pair<std::string, Tensor>>& tensors) {
    Hdf5Writer file;
    for (const auto& [name, tensor] : tensors) file.write(name, tensor);
    file.save(path);
  };
  const Tensor bytes = Tensor::full({4, 3, 2, 2}, 51.0, Dtype::u8),
               labels = Tensor::from(std::vector<int64_t>{0, 1, 2, 1}, {4});
  write({{"train/images", bytes},
         {"train/labels", labels},
         {"val/images", Tensor::full({1, 3, 2, 2}, 0.25)},
         {"val/labels", Tensor::full({1}, 3, Dtype::i64)}});
  const auto train = make_hdf5(options, Split::train);
  EXPECT_EQ(train->description().classes, 3);
  EXPECT_FLOAT_EQ(first(*train, 2).inputs.to_vector<float>()[0], 0.2f);
  EXPECT_EQ(first(*train, 2).targets.item(), 2);
  EXPECT_ERROR(make_hdf5(options, Split::val), "val/labels: label 3 of image 0 is outside [0, 3)");
  EXPECT_EQ(kind_of(path), "hdf5");

  write({{"train/tokens", Tensor::from(std::vector<int64_t>{0, 1, 2, 3, 4, 5}, {2, 3})},
         {"val/inputs", Tensor::from(std::vector<int64_t>{1, 2}, {1, 2})},
         {"val/targets", Tensor::from(std::vector<int64_t>{-100, 9}, {1, 2})}});
  EXPECT_ERROR(make_hdf5(options, Split::train),
               "has no attribute vocab_size; set data.vocab_size");
  options.vocab_size = 6;
  const Batch batch = first(*make_hdf5(options, Split::train), 1);
  EXPECT_EQ(batch.inputs.to_vector<int64_t>(), (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(batch.targets.to_vector<int64_t>(), (std::vector<int64_t>{4, 5}));
  EXPECT_ERROR(first(*make_hdf5(options, Split::val)),
               "val/targets row 0 holds id 9 at 1, outside the vocabulary of 6");
  options.vocab_size = 10;
  EXPECT_EQ(first(*make_hdf5(options, Split::val)).targets.to_vector<int64_t>(),
            (std::vector<int64_t>{kIgnore, 9}));

  write({{"train/images", bytes}, {"train/labels", Tensor::full({3}, 0, Dtype::i64)}});
  EXPECT_ERROR(make_hdf5(options, Split::train), "4 images but 3 labels");
  EXPECT_ERROR(make_hdf5(options, Split::val), "has no group val");
  // Labels and ids that are none, and pixels that are no numbers.
  const auto labelled = [&](const Tensor& values) {
    write({{"train/images", bytes}, {"train/labels", values}});
  };
  labelled(Tensor::from(std::vector<int64_t>{0, 1, -1, 1}, {4}));
  EXPECT_ERROR(make_hdf5(options, Split::train), "train/labels: label -1 of image 2 is outside");
  labelled(Tensor::from(std::vector<int64_t>{0, std::numeric_limits<int64_t>::max(), 0, 1}, {4}));
  EXPECT_ERROR(make_hdf5(options, Split::train),
               "train/labels: label 9223372036854775807 of image 1 is outside");
  labelled(Tensor::full({4}, std::numeric_limits<double>::quiet_NaN()));
  EXPECT_ERROR(make_hdf5(options, Split::train), "train/labels holds f32; expected integers");
  write({{"train/images", Tensor::zeros({4, 3, 0, 2})}, {"train/labels", labels}});
  EXPECT_ERROR(make_hdf5(options, Split::train),
               "train/images is [4, 3, 0, 2]; expected [N, C, H, W]");
  write({{"train/images", Tensor::zeros({4, 3, 2, 2}, Dtype::i32)}, {"train/labels", labels}});
  EXPECT_ERROR(make_hdf5(options, Split::train),
               "train/images holds i32; expected u8, or floats in [0, 1]");
  const Tensor pixels = Tensor::zeros({4, 3, 2, 2});
  pixels.data<float>()[2 * 12 + 5] = std::numeric_limits<float>::quiet_NaN();
  write({{"train/images", pixels}, {"train/labels", labels}});
  EXPECT_ERROR(first(*make_hdf5(options, Split::train), 2), "train/images row 2 holds nan at 5");
  write({{"train/tokens", Tensor::zeros({2, 3})}});
  EXPECT_ERROR(make_hdf5(options, Split::train), "train/tokens holds f32; expected integers");
  options.vocab_size = 0;
  for (const std::string vocab : {"many", "-3", "0", "99999999999999999999", "3 "}) {
    Hdf5Writer file;
    file.write("train/tokens", Tensor::zeros({2, 3}, Dtype::i64));
    file.attribute("/", "vocab_size", vocab);
    file.save(path);
    EXPECT_ERROR(make_hdf5(options, Split::train),
                 "attribute vocab_size is \"" + vocab + "\"; expected an integer from 1");
  }
  options.path = "";
  EXPECT_ERROR(make_hdf5(options, Split::train), "data.path is not set");
  write({{"train/other", bytes}});
  options.path = path;
  EXPECT_ERROR(make_hdf5(options, Split::train), "holds none of images, tokens and inputs");
}

// ---- changes ------------------------------------------------------------------------------------

TEST(Resize, KeepsConstantsAndTheImageItselfAndReducesWithoutAliasing) {
  std::vector<float> image(5 * 7), same(5 * 7), half(4);
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<float>(i * i % 11);
  resize(image.data(), 1, 5, 7, {0, 0, 5, 7}, same.data(), 5, 7);
  for (size_t i = 0; i < image.size(); ++i) EXPECT_NEAR(same[i], image[i], 1e-5);
  std::vector<float> flat(3 * 4, 0.75f), large(9 * 10);
  resize(flat.data(), 1, 3, 4, {0.3, 0.2, 2.0, 3.1}, large.data(), 9, 10);
  for (float v : large) EXPECT_NEAR(v, 0.75f, 1e-6);
  // one pixel in two of a checkerboard: the mean, not one colour
  std::vector<float> board(16 * 16);
  for (size_t i = 0; i < board.size(); ++i) board[i] = static_cast<float>((i + i / 16) % 2);
  resize(board.data(), 1, 16, 16, {4, 4, 8, 8}, half.data(), 2, 2);
  for (float v : half) EXPECT_NEAR(v, 0.5f, 1e-6);
}

std::vector<float> noise_image(int64_t count, const char* name) {
  std::vector<float> image;
  Draw draw(RngKey(1, "test", name));
  for (int64_t i = 0; i < count; ++i) image.push_back(static_cast<float>(draw.uniform()));
  return image;
}

TEST(Augment, EveryChangeKeepsValuesInRangeAndFollowsItsStream) {
  const auto run = [](const AugmentOptions& options, uint64_t i) {
    std::vector<float> image = noise_image(3 * 9 * 12, "image");
    Draw draw(RngKey(1, "augment", "", i));
    augment(image.data(), 3, 9, 12, options, draw);
    return image;
  };
  std::vector<AugmentOptions> all(5);
  all[0].crop_area = 0.2;
  all[1].randaugment_ops = 2;
  all[2].erase = 1.0;
  all[3].flip = true;
  all[4].crop_padding = 3;
  const std::vector<float> before = noise_image(3 * 9 * 12, "image");
  for (const AugmentOptions& options : all) {
    int changed = 0;
    std::set<std::vector<float>> different;
    for (uint64_t i = 0; i < 60; ++i) {
      const std::vector<float> image = run(options, i);
      EXPECT_EQ(image, run(options, i));
      changed += image != before;
      different.insert(image);
      for (float v : image) ASSERT_TRUE(v >= 0.0f && v <= 1.0f) << v;
    }
    EXPECT_GT(changed, 15);
    EXPECT_GE(different.size(), 2u);
  }
  EXPECT_EQ(run({}, 0), before);
}

TEST(Augment, RandAugmentOfNoStrengthKeepsGeometryAndColours) {
  const std::vector<float> before = noise_image(3 * 9 * 12, "image");
  int kept = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    std::vector<float> image = before;
    Draw draw(RngKey(1, "augment", "", i));
    randaugment(image.data(), 3, 9, 12, 0.0, draw);
    float largest = 0.0f;
    for (size_t p = 0; p < image.size(); ++p)
      largest = std::max(largest, std::abs(image[p] - before[p]));
    kept += largest < 0.005f;  // posterising to 256 levels moves by less than one of them
  }
  EXPECT_GT(kept, 150);  // all but autocontrast, one in eleven
}

TEST(Augment, ErasedRectanglesCoverTheShareOfThePaper) {
  AugmentOptions options;
  options.erase = 0.5;
  int erased = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    std::vector<float> image(40 * 40, -1.0f);
    Draw draw(RngKey(1, "augment", "", i));
    augment(image.data(), 1, 40, 40, options, draw);
    const auto covered =
        std::count_if(image.begin(), image.end(), [](float v) { return v >= 0.0f; });
    if (covered == 0) continue;
    ++erased;
    EXPECT_GE(covered, 20);
    EXPECT_LE(covered, 1600 * 0.4);
  }
  EXPECT_NEAR(erased, 200, 40);
}

TEST(Mix, SharesAreThoseOfThePixels) {
  for (const bool cut : {false, true}) {
    AugmentOptions options;
    (cut ? options.cutmix : options.mixup) = 1.0;
    double total = 0.0;
    for (uint64_t i = 0; i < 300; ++i) {
      std::vector<float> image(2 * 8 * 8, 0.0f);
      const std::vector<float> other(2 * 8 * 8, 1.0f);
      Draw draw(RngKey(1, "augment", "", i));
      const double keep = mix(image.data(), other.data(), 2, 8, 8, options, draw);
      const double mean = std::accumulate(image.begin(), image.end(), 0.0) / 128.0;
      EXPECT_NEAR(mean, 1.0 - keep, 1e-5);
      if (cut) {
        EXPECT_TRUE(std::all_of(image.begin(), image.end(),
                                [](float v) { return v == 0.0f || v == 1.0f; }));
      }
      total += keep;
    }
    EXPECT_NEAR(total / 300.0, cut ? 0.6 : 0.5, 0.08);  // clipping at the edges leaves more
  }
}

TEST_F(Images, MixedBatchesHaveSoftTargetsThatDependOnTheSampleAlone) {
  std::string ten;
  for (int record = 0; record < 10; ++record)
    ten += static_cast<char>(record) + std::string(3072, static_cast<char>(record * 20));
  for (int i = 1; i <= 5; ++i) put("data_batch_" + std::to_string(i) + ".bin", ten);
  put("test_batch.bin", ten);
  ImageOptions options({0.0}, {1.0});
  options.path = folder.string();
  options.augment.mixup = 0.4;
  options.augment.cutmix = 1.0;
  const auto source = make_cifar10(options, Split::train);
  std::vector<Sample> samples;
  for (int64_t i = 0; i < 20; ++i) samples.push_back({i, 0, static_cast<uint64_t>(i)});
  const Batch batch = source->make(samples, 1);
  EXPECT_FALSE(batch.targets.defined());
  const auto soft = batch.soft_targets.to_vector<float>(), pixels = batch.inputs.to_vector<float>();
  for (size_t i = 0; i < 20; ++i) {
    double mass = 0.0, colour = 0.0, mean = 0.0;
    for (size_t c = 0; c < 10; ++c) {
      mass += soft[i * 10 + c];
      colour += soft[i * 10 + c] * static_cast<double>(c) * 20.0 / 255.0;
    }
    for (size_t p = 0; p < 3072; ++p) mean += pixels[i * 3072 + p] / 3072.0;
    EXPECT_NEAR(mass, 1.0, 1e-6);
    EXPECT_NEAR(mean, colour, 1e-4);  // a picture of class c is the grey 20 c
  }
  const Batch alone = source->make({&samples[13], 1}, 1);
  EXPECT_EQ(alone.soft_targets.to_vector<float>(),
            std::vector<float>(soft.begin() + 130, soft.begin() + 140));
  EXPECT_TRUE(make_cifar10(options, Split::val)->make(samples = {{0, 0, 0}}, 1).targets.defined());
}

}  // namespace
}  // namespace fovea::data
