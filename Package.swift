// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [.treatAllWarnings(as: .error)]

let package = Package(
  name: "sluice",
  products: [
    .executable(name: "sluice", targets: ["sluice"]),
    .executable(name: "sluice-sim", targets: ["sluice-sim"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
  ],
  targets: [
    // Thin shims over the field's C libraries.
    .target(name: "CURing", linkerSettings: [.linkedLibrary("uring")]),
    .target(name: "CISAL", linkerSettings: [.linkedLibrary("isal")]),
    // The deterministic data plane: one target, so that the optimiser sees it whole.
    .target(name: "Core", dependencies: ["CISAL"], swiftSettings: settings),
    // What runs the core's effects on Linux.
    .target(name: "DeviceIO", dependencies: ["Core", "CURing"], swiftSettings: settings),
    // Front ends: a protocol to block requests, no storage logic.
    .target(name: "NBDServer", dependencies: ["Core"], swiftSettings: settings),
    // The engine's thread: ring, engine and connections in one loop.
    .target(
      name: "Daemon", dependencies: ["Core", "DeviceIO", "NBDServer", "CURing"],
      swiftSettings: settings),
    // The control plane: messages, HTTP routes.
    .target(name: "ControlAPI", swiftSettings: settings),
    .target(
      name: "ControlServer",
      dependencies: [
        "ControlAPI",
        .product(name: "Hummingbird", package: "hummingbird"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: settings),
    // Offline verification: shares only Core's decoders with the engine.
    .target(name: "Checker", dependencies: ["Core"], swiftSettings: settings),
    // Simulated devices, clock, faults and the model; the same engine.
    .target(name: "Simulation", dependencies: ["Core", "Checker"], swiftSettings: settings),
    .executableTarget(
      name: "sluice",
      dependencies: [
        "Core", "DeviceIO", "NBDServer", "ControlAPI", "ControlServer", "Checker",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: settings),
    .executableTarget(
      name: "sluice-sim",
      dependencies: [
        "Simulation", .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: settings),
    .testTarget(
      name: "DeviceIOTests", dependencies: ["Core", "DeviceIO", "Daemon"],
      swiftSettings: settings),
    .testTarget(name: "CoreTests", dependencies: ["Core"], swiftSettings: settings),
    .testTarget(name: "NBDServerTests", dependencies: ["Core", "NBDServer"], swiftSettings: settings),
  ]
)
