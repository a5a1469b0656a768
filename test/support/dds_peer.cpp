// One participant of Fast DDS with, or without, an enclave's keys, which writes or reads one topic.
//
//   dds_peer ENCLAVE_FOLDER|- write|read TOPIC DOMAIN SECONDS
//
// Prints "refused: WHAT" where the permissions forbid it, and at the end "matched=N received=N".

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include <fastdds/dds/domain/DomainParticipant.hpp>
#include <fastdds/dds/domain/DomainParticipantFactory.hpp>
#include <fastdds/dds/log/Log.hpp>
#include <fastdds/dds/publisher/DataWriter.hpp>
#include <fastdds/dds/publisher/Publisher.hpp>
#include <fastdds/dds/subscriber/DataReader.hpp>
#include <fastdds/dds/subscriber/SampleInfo.hpp>
#include <fastdds/dds/subscriber/Subscriber.hpp>
#include <fastdds/dds/topic/TopicDataType.hpp>
#include <fastdds/rtps/transport/UDPv4TransportDescriptor.h>

using namespace eprosima::fastdds::dds;
using eprosima::fastrtps::rtps::InstanceHandle_t;
using eprosima::fastrtps::rtps::SerializedPayload_t;

struct NumberType : public TopicDataType {
  NumberType() {
    setName("thor_policy_ros::Number");
    m_typeSize = 8;
    m_isGetKeyDefined = false;
  }
  bool serialize(void* data, SerializedPayload_t* payload) override {
    payload->length = 8;
    std::memset(payload->data, 0, 8);
    std::memcpy(payload->data + 4, data, 4);
    return true;
  }
  bool deserialize(SerializedPayload_t* payload, void* data) override {
    std::memcpy(data, payload->data + 4, 4);
    return true;
  }
  std::function<uint32_t()> getSerializedSizeProvider(void*) override {
    return [] { return 8u; };
  }
  void* createData() override { return new uint32_t(0); }
  void deleteData(void* data) override { delete static_cast<uint32_t*>(data); }
  bool getKey(void*, InstanceHandle_t*, bool) override { return false; }
};

DomainParticipantQos qos_of(const std::string& folder) {
  DomainParticipantQos qos;
  // Shared memory would be shared with the other version of Fast DDS that the wheels bring.
  auto udp = std::make_shared<eprosima::fastdds::rtps::UDPv4TransportDescriptor>();
  udp->interfaceWhiteList.emplace_back("127.0.0.1");
  qos.transport().use_builtin_transports = false;
  qos.transport().user_transports.push_back(udp);
  if (folder == "-") return qos;
  auto& properties = qos.properties().properties();
  auto file = [&](const char* name) { return "file://" + folder + "/" + name; };
  auto set = [&](const char* name, const std::string& value) {
    properties.emplace_back(name, value);
  };
  set("dds.sec.auth.plugin", "builtin.PKI-DH");
  set("dds.sec.auth.builtin.PKI-DH.identity_ca", file("identity_ca.cert.pem"));
  set("dds.sec.auth.builtin.PKI-DH.identity_certificate", file("cert.pem"));
  set("dds.sec.auth.builtin.PKI-DH.private_key", file("key.pem"));
  set("dds.sec.crypto.plugin", "builtin.AES-GCM-GMAC");
  set("dds.sec.access.plugin", "builtin.Access-Permissions");
  set("dds.sec.access.builtin.Access-Permissions.permissions_ca", file("permissions_ca.cert.pem"));
  set("dds.sec.access.builtin.Access-Permissions.governance", file("governance.p7s"));
  set("dds.sec.access.builtin.Access-Permissions.permissions", file("permissions.p7s"));
  return qos;
}

// The middleware's own end is not what is tried.
[[noreturn]] void end(const std::string& words) {
  std::cout << words << std::endl;
  std::_Exit(0);
}

[[noreturn]] void refused(const std::string& what) {
  Log::Flush();
  end("refused: " + what);
}

int main(int, char** argv) {
  const std::string folder = argv[1], role = argv[2], name = argv[3];
  const int domain = std::stoi(argv[4]);
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::stod(argv[5]));
  auto* participant = DomainParticipantFactory::get_instance()->create_participant(domain, qos_of(folder));
  if (participant == nullptr) refused("participant");
  TypeSupport type(new NumberType());
  type.register_type(participant);
  Topic* topic = participant->create_topic(name, type.get_type_name(), TOPIC_QOS_DEFAULT);
  int matched = 0, received = 0;
  DataWriter* writer = nullptr;
  DataReader* reader = nullptr;
  if (role == "write") {
    DataWriterQos qos;
    qos.reliability().kind = RELIABLE_RELIABILITY_QOS;
    writer = participant->create_publisher(PUBLISHER_QOS_DEFAULT)->create_datawriter(topic, qos);
    if (writer == nullptr) refused("writer");
  } else {
    DataReaderQos qos;
    qos.reliability().kind = RELIABLE_RELIABILITY_QOS;
    reader = participant->create_subscriber(SUBSCRIBER_QOS_DEFAULT)->create_datareader(topic, qos);
    if (reader == nullptr) refused("reader");
  }
  std::cout << "running" << std::endl;
  uint32_t number = 0;
  while (std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (writer != nullptr) {
      ++number;
      writer->write(&number);
      PublicationMatchedStatus status;
      writer->get_publication_matched_status(status);
      matched = status.total_count;
    } else {
      SampleInfo info;
      while (reader->take_next_sample(&number, &info) == ReturnCode_t::RETCODE_OK)
        received += info.valid_data;
      SubscriptionMatchedStatus status;
      reader->get_subscription_matched_status(status);
      matched = status.total_count;
    }
  }
  end("matched=" + std::to_string(matched) + " received=" + std::to_string(received));
}
