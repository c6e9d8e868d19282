// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [.treatAllWarnings(as: .error)]

// The data path does without the run-time check of exclusive access to class properties: it took a
// third of a write's instructions. `make test` runs the unit tests with the check.
let dataPath = settings + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

// Executables carry the Swift runtime in them, so that they run on a machine without a toolchain.
// This is said here and not with `--static-swift-stdlib`: the tests can't be linked that way, and
// with one set of compiler flags `make build` and `make test` share every object file. What
// Foundation's static archives need of each other has to be named.
let selfContained: [LinkerSetting] = [
  .unsafeFlags([
    "-static-stdlib", "-lCoreFoundation", "-l_FoundationICU", "-l_FoundationCShims",
    "-l_FoundationCollections", "-lswiftSynchronization",
  ])
]

let package = Package(
  name: "sluice",
  products: [
    .executable(name: "sluice", targets: ["sluice"]),
    .executable(name: "sluice-sim", targets: ["sluice-sim"]),
    .executable(name: "sluice-cost", targets: ["sluice-cost"]),
    .executable(name: "sluice-null", targets: ["sluice-null"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0", traits: []),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    // Without its default traits: "FullFoundation" would link full Foundation and 47 MB of ICU.
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1", traits: []),
    .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.8.0"),
  ],
  targets: [
    // Thin shims over the field's C libraries.
    .target(name: "CURing", linkerSettings: [.linkedLibrary("uring")]),
    .target(name: "CISAL", linkerSettings: [.linkedLibrary("isal")]),
    // The deterministic data plane: one target, so that the optimiser sees it whole.
    .target(name: "Core", dependencies: ["CISAL"], swiftSettings: dataPath),
    // What runs the core's effects on Linux.
    .target(name: "DeviceIO", dependencies: ["Core", "CURing"], swiftSettings: dataPath),
    // Front ends: a protocol to block requests, no storage logic.
    .target(name: "NBDServer", dependencies: ["Core"], swiftSettings: dataPath),
    // The engine's thread: ring, engine, connections; and pools as directories and devices.
    .target(
      name: "Daemon", dependencies: ["Core", "DeviceIO", "NBDServer", "CURing"],
      swiftSettings: dataPath),
    // The control plane: messages, HTTP routes.
    .target(name: "ControlAPI", swiftSettings: settings),
    .target(
      name: "ControlServer",
      dependencies: [
        "Core", "ControlAPI",
        .product(name: "Hummingbird", package: "hummingbird"),
        .product(name: "HummingbirdCore", package: "hummingbird"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: settings),
    // Offline verification: shares only Core's decoders with the engine.
    .target(name: "Checker", dependencies: ["Core"], swiftSettings: settings),
    // Simulated devices, clock, faults and the model; the same engine.
    .target(name: "Simulation", dependencies: ["Core", "Checker"], swiftSettings: settings),
    // The command line and the daemon: wires modules. A library of its own, because what tests
    // depend on must not be linked self-contained.
    .target(
      name: "Commands",
      dependencies: [
        "Core", "DeviceIO", "Daemon", "ControlAPI", "ControlServer", "Checker",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: settings),
    .executableTarget(
      name: "sluice", dependencies: ["Commands"], swiftSettings: settings,
      linkerSettings: selfContained),
    .executableTarget(
      name: "sluice-sim",
      dependencies: [
        "Simulation", .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: settings, linkerSettings: selfContained),
    // What an operation costs the engine, and the ceiling that benchmarks compare with.
    .executableTarget(
      name: "sluice-cost", dependencies: ["Core"], swiftSettings: settings,
      linkerSettings: selfContained),
    .executableTarget(
      name: "sluice-null", dependencies: ["Core", "DeviceIO", "Daemon"], swiftSettings: settings,
      linkerSettings: selfContained),
    .testTarget(
      name: "DeviceIOTests", dependencies: ["Core", "DeviceIO", "Daemon"],
      swiftSettings: settings),
    .testTarget(name: "CoreTests", dependencies: ["Core"], swiftSettings: settings),
    .testTarget(
      name: "CheckerTests", dependencies: ["Core", "Checker"], swiftSettings: settings),
    .testTarget(
      name: "NBDServerTests", dependencies: ["Core", "NBDServer"], swiftSettings: settings),
    .testTarget(
      name: "ControlTests",
      dependencies: [
        "Core", "ControlAPI", "ControlServer", "Commands",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: settings),
  ]
)
