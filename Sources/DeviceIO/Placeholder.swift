// DeviceIO
