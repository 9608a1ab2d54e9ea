// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC165, IServing} from "./IServing.sol";
import {KeySet, addressWord, wordAddress} from "./KeySet.sol";
import {Managed} from "./Managed.sol";

struct Ledger {
    address user;
    uint256 availableBalance;
    uint256 totalBalance;
    string additionalInfo;
}

struct ServiceInfo {
    address serviceAddress;
    IServing serviceContract;
    string serviceType;
    string version;
    string fullName;
    string description;
    bool isRecommended;
    uint256 registeredAt;
}

/// Holds the users' uncommitted money and the registry of serving contracts.
contract LedgerManager is Managed {
    using KeySet for KeySet.Set;

    uint256 public immutable MIN_ACCOUNT_BALANCE;
    uint256 public immutable MIN_TRANSFER_AMOUNT;
    uint256 public constant MAX_PROVIDERS_PER_BATCH = 20;
    uint256 public constant MAX_PROVIDERS_PER_USER_PER_SERVICE = 50;
    uint256 public constant MAX_SERVICES = 500;
    uint256 public constant MAX_ADDITIONAL_INFO_LENGTH = 4096;
    uint256 private constant DEFAULT_PAGE = 50;

    mapping(address user => Ledger) private _ledgers;
    KeySet.Set private _users;
    mapping(address user => mapping(address service => KeySet.Set)) private _providers;
    mapping(address user => bool) private _busy;

    address[] private _services;
    mapping(address service => ServiceInfo) private _infos;
    mapping(bytes32 nameHash => address service) private _named;
    mapping(bytes32 typeHash => address service) private _recommended;

    event FundSpent(address indexed user, address indexed service, uint256 amount);
    event LedgerInfoUpdated(address indexed user, string additionalInfo);
    event RecommendedServiceUpdated(string serviceType, string version, address serviceAddress);
    event ServiceRegistered(address indexed serviceAddress, string serviceName);

    error AdditionalInfoTooLong(uint256 length, uint256 max);
    error CallFailed();
    error CallerNotRegisteredService(address caller);
    error InsufficientAvailableBalance(uint256 available, uint256 required);
    error InsufficientBalance(address user);
    error InvalidServiceAddress(address serviceAddress);
    error InvalidServiceType(string serviceType);
    error LedgerExists(address user);
    error LedgerLocked();
    error LedgerNotExists(address user);
    error MinimumDepositRequired(uint256 provided, uint256 required);
    error MustWithdrawAllFundsFirst(uint256 remainingBalance);
    error NoRecommendedService(string serviceType);
    error ServiceAlreadyRegistered(address serviceAddress);
    error ServiceMustImplementIServing(address serviceAddress);
    error ServiceNameExists(string serviceName);
    error ServiceNotFound(address serviceAddress);
    error ServiceNotRegistered(address serviceAddress);
    error ServiceRegistryLimitReached(uint256 limit);
    error ServiceTypeRequired();
    error TooManyProviders(uint256 requested, uint256 maximum);
    error TooManyProvidersForService(uint256 current, uint256 maximum);
    error TransferFailed();
    error VersionRequired();
    error ZeroAddressNotAllowed();
    error ZeroAmountNotAllowed();

    modifier locked(address user) {
        if (_busy[user]) revert LedgerLocked();
        _busy[user] = true;
        _;
        _busy[user] = false;
    }

    constructor(uint256 minAccountBalance, uint256 minTransferAmount) {
        MIN_ACCOUNT_BALANCE = minAccountBalance;
        MIN_TRANSFER_AMOUNT = minTransferAmount;
        _lockForever();
    }

    function initialize(address owner) external once {
        _setOwner(owner);
    }

    receive() external payable {
        if (_infos[msg.sender].serviceAddress == address(0)) revert DirectDepositsDisabled();
    }

    // ---- the user's money

    function addLedger(string calldata additionalInfo)
        external
        payable
        locked(msg.sender)
        returns (uint256, uint256)
    {
        _requireMinimum(msg.value);
        _checkInfo(additionalInfo);
        if (_hasLedger(msg.sender)) revert LedgerExists(msg.sender);
        _open(msg.sender, additionalInfo);
        return (msg.value, 0);
    }

    function depositFund() external payable locked(msg.sender) {
        _deposit(msg.sender);
    }

    function depositFundFor(address recipient) external payable locked(recipient) {
        if (recipient == address(0)) revert ZeroAddressNotAllowed();
        _deposit(recipient);
    }

    function updateAdditionalInfo(string calldata additionalInfo) external locked(msg.sender) {
        _checkInfo(additionalInfo);
        _ledgerOf(msg.sender).additionalInfo = additionalInfo;
        emit LedgerInfoUpdated(msg.sender, additionalInfo);
    }

    function refund(uint256 amount) external locked(msg.sender) {
        Ledger storage ledger = _ledgerOf(msg.sender);
        uint256 available = ledger.availableBalance;
        if (available < amount) revert InsufficientBalance(msg.sender);
        available -= amount;
        if (available != 0) _requireMinimum(available);
        uint256 total = ledger.totalBalance - amount;
        ledger.availableBalance = available;
        ledger.totalBalance = total;
        if (total == 0) _close(msg.sender);
        if (!_pay(msg.sender, amount)) revert TransferFailed();
    }

    function transferFund(address provider, string calldata serviceName, uint256 amount)
        external
        locked(msg.sender)
    {
        Ledger storage ledger = _ledgerOf(msg.sender);
        IServing service = IServing(_serviceNamed(serviceName));
        KeySet.Set storage providers = _providers[msg.sender][address(service)];
        uint256 leaving = amount;
        bytes memory message;
        if (providers.has(addressWord(provider))) {
            uint256 cancelled = service.getPendingRefund(msg.sender, provider);
            if (cancelled > amount) cancelled = amount;
            leaving -= cancelled;
            message = abi.encodeCall(IServing.depositFund, (msg.sender, provider, cancelled));
        } else {
            if (amount < MIN_TRANSFER_AMOUNT) revert MinimumDepositRequired(amount, MIN_TRANSFER_AMOUNT);
            uint256 count = providers.size();
            if (count >= MAX_PROVIDERS_PER_USER_PER_SERVICE) {
                revert TooManyProvidersForService(count, MAX_PROVIDERS_PER_USER_PER_SERVICE);
            }
            providers.add(addressWord(provider));
            message = abi.encodeCall(IServing.addAccount, (msg.sender, provider, ledger.additionalInfo));
        }
        uint256 available = ledger.availableBalance;
        if (available < leaving) revert InsufficientAvailableBalance(available, leaving);
        ledger.availableBalance = available - leaving;
        (bool done,) = address(service).call{value: leaving}(message);
        if (!done) revert CallFailed();
    }

    function retrieveFund(address[] calldata providers, string calldata serviceName) external locked(msg.sender) {
        if (providers.length > MAX_PROVIDERS_PER_BATCH) {
            revert TooManyProviders(providers.length, MAX_PROVIDERS_PER_BATCH);
        }
        IServing service = IServing(_serviceNamed(serviceName));
        Ledger storage ledger = _ledgerOf(msg.sender);
        KeySet.Set storage known = _providers[msg.sender][address(service)];
        uint256 collected;
        for (uint256 i; i < providers.length; ++i) {
            if (!known.has(addressWord(providers[i]))) continue;
            (uint256 amount,,) = service.processRefund(msg.sender, providers[i]);
            collected += amount;
            service.requestRefundAll(msg.sender, providers[i]);
        }
        if (collected != 0) ledger.availableBalance += collected;
    }

    function deleteLedger() external locked(msg.sender) {
        uint256 total = _ledgerOf(msg.sender).totalBalance;
        if (total != 0) revert MustWithdrawAllFundsFirst(total);
        _close(msg.sender);
    }

    function spendFund(address user, uint256 amount) external {
        if (_infos[msg.sender].serviceAddress == address(0)) revert CallerNotRegisteredService(msg.sender);
        Ledger storage ledger = _ledgerOf(user);
        uint256 total = ledger.totalBalance;
        uint256 committed = total - ledger.availableBalance;
        if (committed < amount) revert InsufficientAvailableBalance(committed, amount);
        ledger.totalBalance = total - amount;
        emit FundSpent(user, msg.sender, amount);
    }

    // ---- the registry

    function registerService(
        string calldata serviceType,
        string calldata version,
        address serviceAddress,
        string calldata description
    ) external onlyOwner {
        if (serviceAddress == address(0)) revert InvalidServiceAddress(serviceAddress);
        if (bytes(serviceType).length == 0) revert ServiceTypeRequired();
        if (bytes(version).length == 0) revert VersionRequired();
        if (_infos[serviceAddress].serviceAddress != address(0)) revert ServiceAlreadyRegistered(serviceAddress);
        string memory fullName = string.concat(serviceType, "-", version);
        bytes32 nameHash = keccak256(bytes(fullName));
        if (_named[nameHash] != address(0)) revert ServiceNameExists(fullName);
        if (!_isServing(serviceAddress)) revert ServiceMustImplementIServing(serviceAddress);
        if (_services.length >= MAX_SERVICES) revert ServiceRegistryLimitReached(MAX_SERVICES);
        _infos[serviceAddress] = ServiceInfo(
            serviceAddress,
            IServing(serviceAddress),
            serviceType,
            version,
            fullName,
            description,
            false,
            block.timestamp
        );
        _named[nameHash] = serviceAddress;
        _services.push(serviceAddress);
        emit ServiceRegistered(serviceAddress, fullName);
    }

    function setRecommendedService(string calldata serviceType, string calldata version) external onlyOwner {
        address chosen = _versionAddress(serviceType, version);
        if (chosen == address(0)) revert ServiceNotFound(address(0));
        bytes32 typeHash = keccak256(bytes(serviceType));
        address former = _recommended[typeHash];
        if (former != address(0)) _infos[former].isRecommended = false;
        _infos[chosen].isRecommended = true;
        _recommended[typeHash] = chosen;
        emit RecommendedServiceUpdated(serviceType, version, chosen);
    }

    // ---- views

    function getLedger(address user) external view returns (Ledger memory) {
        return _ledgerOf(user);
    }

    function getAllLedgers(uint256 offset, uint256 limit)
        external
        view
        returns (Ledger[] memory ledgers, uint256 total)
    {
        bytes32[] memory page;
        (page, total) = _users.slice(offset, limit == 0 ? DEFAULT_PAGE : limit);
        ledgers = new Ledger[](page.length);
        for (uint256 i; i < page.length; ++i) ledgers[i] = _ledgers[wordAddress(page[i])];
    }

    function getLedgerProviders(address user, string calldata serviceName)
        external
        view
        returns (address[] memory)
    {
        bytes32[] storage words = _providers[user][_serviceNamed(serviceName)].words;
        address[] memory providers = new address[](words.length);
        for (uint256 i; i < providers.length; ++i) providers[i] = wordAddress(words[i]);
        return providers;
    }

    function getServiceInfo(address serviceAddress) external view returns (ServiceInfo memory) {
        return _infos[serviceAddress];
    }

    function getServiceAddressByName(string calldata serviceName) external view returns (address) {
        return _named[keccak256(bytes(serviceName))];
    }

    function getAllActiveServices() external view returns (ServiceInfo[] memory) {
        ServiceInfo[] memory infos = new ServiceInfo[](_services.length);
        for (uint256 i; i < infos.length; ++i) infos[i] = _infos[_services[i]];
        return infos;
    }

    function getRecommendedService(string calldata serviceType)
        external
        view
        returns (string memory version, address serviceAddress)
    {
        serviceAddress = _recommended[keccak256(bytes(serviceType))];
        if (serviceAddress == address(0)) revert NoRecommendedService(serviceType);
        version = _infos[serviceAddress].version;
    }

    function getAllVersions(string calldata serviceType)
        external
        view
        returns (string[] memory versions, address[] memory addresses, bool[] memory isRecommendedFlags)
    {
        bytes32 typeHash = keccak256(bytes(serviceType));
        uint256 count;
        for (uint256 i; i < _services.length; ++i) if (_isType(_services[i], typeHash)) ++count;
        versions = new string[](count);
        addresses = new address[](count);
        isRecommendedFlags = new bool[](count);
        count = 0;
        for (uint256 i; i < _services.length; ++i) {
            address service = _services[i];
            if (!_isType(service, typeHash)) continue;
            versions[count] = _infos[service].version;
            addresses[count] = service;
            isRecommendedFlags[count++] = _infos[service].isRecommended;
        }
    }

    function isRecommendedVersion(string calldata serviceType, string calldata version)
        external
        view
        returns (bool)
    {
        return _infos[_versionAddress(serviceType, version)].isRecommended;
    }

    // ---- inside

    function _deposit(address user) private {
        if (msg.value == 0) revert ZeroAmountNotAllowed();
        if (_hasLedger(user)) {
            Ledger storage ledger = _ledgers[user];
            ledger.availableBalance += msg.value;
            ledger.totalBalance += msg.value;
        } else {
            _requireMinimum(msg.value);
            _open(user, "");
        }
    }

    function _open(address user, string memory additionalInfo) private {
        _users.add(addressWord(user));
        _ledgers[user] = Ledger(user, msg.value, msg.value, additionalInfo);
    }

    function _close(address user) private {
        for (uint256 i; i < _services.length; ++i) {
            KeySet.Set storage providers = _providers[user][_services[i]];
            for (uint256 left = providers.size(); left != 0; left = providers.size()) {
                bytes32 word = providers.words[0];
                providers.remove(word);
                IServing(_services[i]).deleteAccount(user, wordAddress(word));
            }
        }
        _users.remove(addressWord(user));
        delete _ledgers[user];
    }

    function _hasLedger(address user) private view returns (bool) {
        return _users.has(addressWord(user));
    }

    function _ledgerOf(address user) private view returns (Ledger storage) {
        if (!_hasLedger(user)) revert LedgerNotExists(user);
        return _ledgers[user];
    }

    function _requireMinimum(uint256 amount) private view {
        if (amount < MIN_ACCOUNT_BALANCE) revert MinimumDepositRequired(amount, MIN_ACCOUNT_BALANCE);
    }

    function _checkInfo(string calldata info) private pure {
        uint256 length = bytes(info).length;
        if (length > MAX_ADDITIONAL_INFO_LENGTH) revert AdditionalInfoTooLong(length, MAX_ADDITIONAL_INFO_LENGTH);
    }

    function _serviceNamed(string calldata name) private view returns (address service) {
        service = _named[keccak256(bytes(name))];
        if (service == address(0)) revert ServiceNotFound(address(0));
    }

    function _versionAddress(string calldata serviceType, string calldata version) private view returns (address) {
        return _named[keccak256(bytes(string.concat(serviceType, "-", version)))];
    }

    function _isType(address service, bytes32 typeHash) private view returns (bool) {
        return keccak256(bytes(_infos[service].serviceType)) == typeHash;
    }

    function _isServing(address service) private view returns (bool) {
        return _supports(service, type(IERC165).interfaceId) && !_supports(service, 0xffffffff)
            && _supports(service, type(IServing).interfaceId);
    }

    function _supports(address service, bytes4 interfaceId) private view returns (bool) {
        (bool done, bytes memory answer) =
            service.staticcall{gas: 30000}(abi.encodeCall(IERC165.supportsInterface, (interfaceId)));
        return done && answer.length >= 32 && uint256(bytes32(answer)) == 1;
    }
}
